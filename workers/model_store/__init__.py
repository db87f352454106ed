"""Where a model's files come from: known names, folders, GGUF files and the Hugging Face hub, as one kind of folder."""
