"""Train: the trainer, its data loader and its callbacks.

Imports :mod:`atom.titan.checkpoint` and what is below it.
"""
