"""Refuse configurations, before ranks start, that every rank would refuse or train wrongly.

Imports the parts of :mod:`atom.titan.trainer_config`, never a trainer.
"""
