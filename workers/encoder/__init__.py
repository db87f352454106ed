"""Encoders: models that read a text at once and give vectors, labels, scores or missing words."""
