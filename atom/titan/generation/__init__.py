"""Continue texts with a whole model in one process: cached steps, sampling, text, conversations."""
