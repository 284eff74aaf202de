"""Describe one training run: its keys, their ranges, and what they need of each other.

Imports :mod:`atom.io` and :mod:`atom.plan`; no torch, no Hydra, no plugin.
"""
