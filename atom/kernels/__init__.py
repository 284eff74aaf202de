"""Define the operations that have kernels, and choose one kernel for each.

Imports :mod:`atom.registry` and :mod:`atom.plan`. Only ``sharded`` and ``output_layer``, which
kernels call, import torch.
"""
