"""Write and read a run's folder: its recipe, its claim, its metrics, events and checkpoints.

Imports :mod:`atom.registry`, :mod:`atom.recipe` and :mod:`atom.io`; no torch, no Hydra.
"""
