"""Text to token ids and back: the tokenizer of a model folder, and the growing text of one request."""
