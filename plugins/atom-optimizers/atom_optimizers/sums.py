"""Add up sums over the ranks that shard a parameter, and find the placements of such sums."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Placement, Replicate


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def add_up(sums: Iterable[tuple[torch.Tensor, torch.Tensor, int | None]]) -> None:
    """Replace this rank's share of sums by the sums over all ranks, in place.

    All ranks that share the parameters call this alike. One all-reduce adds up all sums along an
    axis of a mesh.

    Args:
        sums: a sum over a dimension of a tensor that is sharded like a parameter; the parameter;
            and the dimension, None for all of them.
    """
    along: dict[tuple[Any, int], list[torch.Tensor]] = {}
    for share, parameter, dimension in sums:
        for axis in _axes(parameter, dimension):
            assert isinstance(parameter, DTensor)
            along.setdefault((parameter.device_mesh, axis), []).append(share)
    for (mesh, axis), shares in along.items():
        flat = torch.cat([share.reshape(-1) for share in shares])
        dist.all_reduce(flat, group=mesh.get_group(axis))
        pieces = flat.split([share.numel() for share in shares])
        for share, piece in zip(shares, pieces, strict=True):
            share.copy_(piece.view_as(share))


def like(
    parameter: torch.Tensor, share: torch.Tensor, shape: Iterable[int], dimension: int
) -> torch.Tensor:
    """Return a tensor of ``shape`` that is sharded like a parameter, except along a dimension.

    Args:
        parameter: the parameter.
        share: this rank's shard.
        shape: the unsharded shape.
        dimension: the parameter's dimension that has length 1 in the result.
    """
    if not isinstance(parameter, DTensor):
        return share
    without = _axes(parameter, dimension)
    placements: list[Placement] = [
        Replicate() if axis in without else placement
        for axis, placement in enumerate(parameter.placements)
    ]
    size = torch.Size(shape)
    stride = torch.empty(size, device="meta").stride()
    return DTensor.from_local(
        share, parameter.device_mesh, placements, run_check=False, shape=size, stride=stride
    )


def _axes(parameter: torch.Tensor, dimension: int | None) -> list[int]:
    """Return the axes of the mesh that shard a parameter along a dimension; None for any."""
    if not isinstance(parameter, DTensor):
        return []
    wanted = None if dimension is None else dimension % parameter.ndim
    return [
        axis
        for axis, placement in enumerate(parameter.placements)
        if not placement.is_replicate() and wanted in (None, placement.dim)  # type: ignore[attr-defined]
    ]
