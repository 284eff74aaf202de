"""What a run will need, before it exists: memory, communication, time. No torch here.

:mod:`atom.titan.planning.describe` reads a :class:`~atom.plan.model.ModelDescription` off a real
model; :func:`atom.plan.memory.memory` and its neighbours are arithmetic on it and on a
:class:`~atom.plan.layout.Layout`.
"""
