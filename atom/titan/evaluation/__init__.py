"""Evaluate saved weights on tasks of evaluators."""
