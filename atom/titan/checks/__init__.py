"""Refuse, once and before there are ranks, what every rank would refuse or train wrongly.

Imports :mod:`atom.titan.trainer_config`'s parts, never a trainer.
"""
