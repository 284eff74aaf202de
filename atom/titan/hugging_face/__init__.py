"""Compare folders in Hugging Face's format with a run's model, and write such folders."""
