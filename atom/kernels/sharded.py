"""Tensors that are split over ranks, around kernels that see this rank's part only.

For the modules of kernel plugins; the only such help that imports torch.
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this rank has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_weight(weight: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Return a weight that every rank has whole.

    Where ``beside``, which it is applied to, is split over ranks, its gradient there is a summand.
    """
    if not isinstance(weight, DTensor):
        return weight
    assert isinstance(beside, DTensor)
    gradients = [Partial() if isinstance(p, Shard) else Replicate() for p in beside.placements]
    part: torch.Tensor = weight.to_local(grad_placements=gradients)
    return part


def placed(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return ``part`` placed as ``like`` is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False)
