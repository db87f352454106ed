"""What batches cost on a class of workers: measured, refined, kept, published and read back."""
