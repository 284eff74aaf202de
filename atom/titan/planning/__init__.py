"""Estimate a run's memory and time from its model, and choose layouts with the estimates."""
