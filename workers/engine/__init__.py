"""The engine process: rows of many requests, fused into one step after the other."""
