"""The scheduler process: windows of requests become batches."""
