"""Compute a rank's local shard of a tensor, and the shapes that all shards add up to."""

from __future__ import annotations

from collections.abc import Mapping

import spmd_types as spmd
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torchtitan.components.checkpointer.utils import canonical_fqn


def dividing_axes(parameter: DTensor) -> list[int]:
    """Return the mesh axes that shard ``parameter``, in sharding order."""
    placements = parameter.placements
    for placement in placements:
        assert isinstance(placement, Shard | _StridedShard | Replicate), f"{placement} of a part"
    # A strided shard is FSDP's: it divides what the other axes leave of the same dimension.
    axes = sorted(range(len(placements)), key=lambda a: isinstance(placements[a], _StridedShard))
    return [axis for axis in axes if not isinstance(placements[axis], Replicate)]


def part_of(whole: Tensor, parameter: DTensor) -> Tensor:
    """Return this rank's shard of ``whole``, sharded as ``parameter``.

    DTensor's own copy fails if two mesh axes shard a dimension over more ranks than it has rows,
    such as one number per head: some ranks then have an empty shard.
    """
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "the rank is not in the parameter's mesh"
    for axis in dividing_axes(parameter):
        dim = parameter.placements[axis].dim  # type: ignore[attr-defined]
        whole = chunks(whole, mesh.size(axis), dim)[coordinate[axis]]
    return whole


def chunks(tensor: Tensor, number: int, dim: int) -> tuple[Tensor, ...]:
    """Return ``number`` chunks as torch makes them; the last ones may be empty."""
    return tensor.split(lengths(tensor.shape[dim], number), dim)


def lengths(size: int, number: int) -> list[int]:
    """Return the lengths of ``number`` chunks of ``size``: the first ones are full."""
    full = -(-size // number)
    return [max(0, min(full, size - full * n)) for n in range(number)]


def parameters_of(model: nn.Module) -> dict[str, tuple[int, ...] | None]:
    """Return the unsharded shapes of the parameters of ``model``, by name.

    None for a plain tensor that is a rank's shard: its type shows that, but not the full size.
    """
    return {
        canonical_fqn(name): tuple(parameter.shape)
        if isinstance(parameter, DTensor) or not spmd.get_local_type(parameter)
        else None
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


def changed(
    before: Mapping[str, tuple[int, ...] | None], after: Mapping[str, tuple[int, ...] | None]
) -> str | None:
    """Return the parameter that a layout adds, removes, enlarges or shrinks, or None."""
    for name in dict.fromkeys((*before, *after)):
        if name not in after:
            return f"{name} is missing"
        if name not in before:
            return f"{name} has been added"
        if after[name] not in (before[name], None):
            return f"{name} is {list(after[name] or ())}, and was {list(before[name] or ())}"
    return None
