"""Convert between DTensors and local shards around kernels that see one rank's shard only.

For the modules of kernel plugins.
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_weight(weight: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Return a weight that is replicated on every rank as a plain tensor.

    If ``beside``, the tensor it is applied to, is sharded over ranks, each rank's gradient of the
    weight is a partial sum.
    """
    if not isinstance(weight, DTensor):
        return weight
    assert isinstance(beside, DTensor)
    gradients = [Partial() if isinstance(p, Shard) else Replicate() for p in beside.placements]
    part: torch.Tensor = weight.to_local(grad_placements=gradients)
    return part


def placed(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return ``part`` as a DTensor with the placements of ``like``."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False)
