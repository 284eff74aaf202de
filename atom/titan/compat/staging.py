"""Repair torch's staging of checkpoints for views of distributed tensors."""

from __future__ import annotations

from typing import Any

from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree


def without_offsets(state: dict[str, Any]) -> dict[str, Any]:
    """Return ``state`` with every distributed tensor that has a storage offset copied.

    torch 2.15 recognizes a distributed tensor by its null data pointer, to which it adds the
    offset. A view that begins later than its base, such as ``wk`` in a fused projection with one
    key-value head, then counts as a plain tensor without memory, and staging fails with "invalid
    python storage".
    """
    found: dict[str, Any] = pytree.tree_map_only(DTensor, _without_offset, state)
    return found


def _without_offset(tensor: DTensor) -> DTensor:
    if tensor.storage_offset() == 0:
        return tensor
    return DTensor.from_local(
        tensor.to_local().clone(),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
