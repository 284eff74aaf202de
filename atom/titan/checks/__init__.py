"""Refuse configurations, before ranks start, that every rank would refuse or train wrongly.

One file for each subject; :data:`atom.titan.preflight.checks.CHECKS` lists the checks of a run.

Imports the parts of :mod:`atom.titan.trainer_config`, never a trainer.
"""
