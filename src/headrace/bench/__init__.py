"""The figures of the engine on a GPU, measured as the project states them: ``headrace bench gpu``."""
