"""Build the optimizer of a run and its learning rates."""
