"""Train: the trainer, its data, and what it does beside a step.

Imports :mod:`atom.titan.checkpoint` and what is below it.
"""
