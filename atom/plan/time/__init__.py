"""Predict the time of a training step from a model's work, a layout and a device. No torch here.

docs/planning.md lists every formula, constant and source.
"""
