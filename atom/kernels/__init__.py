"""Name the operations of a model that have kernels, and choose one for each.

Imports :mod:`atom.registry` and :mod:`atom.plan`. Kernels call ``sharded`` and ``output_layer``,
which import torch; nothing else here does.
"""
