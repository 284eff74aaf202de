"""Estimate the memory and time of a run from its model, and choose layouts by that."""
