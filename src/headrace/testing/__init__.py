"""A fleet of one's own for tests and benchmarks, those of this project and of services that stand on it."""
