"""Describe one training run: its keys, their ranges, and the constraints between them.

Imports :mod:`atom.io` and :mod:`atom.plan`; no torch, no Hydra, no plugin.
"""
