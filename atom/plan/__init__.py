"""Estimate a run's memory, communication and time before it exists. No torch here.

:mod:`atom.titan.planning.describe` reads a :class:`~atom.plan.model.ModelDescription` from a
real model; :func:`atom.plan.memory.memory` and its neighbours are arithmetic on it and on a
:class:`~atom.plan.layout.Layout`.
"""
