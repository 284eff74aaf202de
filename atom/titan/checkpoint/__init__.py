"""Write and read checkpoints: complete, verified and free of code."""
