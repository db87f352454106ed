"""Those who ask: the clients that submit requests and read their results."""
