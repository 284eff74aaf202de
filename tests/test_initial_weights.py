"""A rank keeps its part of a weight, however the mesh divides it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from atom.titan.shards import part_of

RANKS = (4, 2)
"""FSDP 4 x TP 2: tensor parallelism divides first, and FSDP what it leaves."""
BOTH_ROWS = (_StridedShard(0, split_factor=2), Shard(0))


@pytest.mark.parametrize(
    "placements",
    [
        BOTH_ROWS,
        (Shard(0), Shard(1)),
        (Shard(1), Shard(0)),
        (Replicate(), Shard(1)),
        (Shard(0), Replicate()),
    ],
)
@pytest.mark.parametrize("rank", [0, 3, 6])
def test_part_is_the_one_that_dtensor_gives(placements: tuple[Any, ...], rank: int) -> None:
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=8)
    try:
        mesh = init_device_mesh("cpu", RANKS, mesh_dim_names=("fsdp", "tp"))
        whole = torch.arange(16.0 * 6).view(16, 6)
        everywhere = DTensor.from_local(whole, mesh, [Replicate(), Replicate()], run_check=False)
        parameter = everywhere.redistribute(placements=placements)
        assert torch.equal(part_of(whole, parameter), parameter.to_local())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("rows", [1, 4, 7, 9])
def test_parts_make_the_whole_where_there_are_fewer_rows_than_ranks(rows: int) -> None:
    whole = torch.arange(float(rows))
    parts = []
    for tensor in range(RANKS[1]):
        for shard in range(RANKS[0]):
            coordinate = [shard, tensor]
            mesh = SimpleNamespace(
                ndim=2, size=RANKS.__getitem__, get_coordinate=lambda c=coordinate: c
            )
            parameter: Any = SimpleNamespace(device_mesh=mesh, placements=BOTH_ROWS)
            parts.append(part_of(whole, parameter))
    assert torch.equal(torch.cat(parts), whole)
