"""The courier process: takes requests from Redis to the engine, and tokens from the engine to Redis."""
