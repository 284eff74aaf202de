"""Write and read checkpoints: whole, verified and data only."""
