"""Matrices in parts on many ranks are put together on one each, whatever divides them."""

from __future__ import annotations

from typing import Any

import pytest
import ranks
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from atom.titan.optim.whole_matrices import on_owners
from atom.titan.shards import part_of

RANKS = 8
AXES = {"dp_replicate": 2, "fsdp": 2, "tp": 2}
ROWS, COLUMNS = Shard(0), Shard(1)
BOTH = (Replicate(), _StridedShard(0, split_factor=2), ROWS)
"""Tensor parallelism divides rows, and FSDP what it leaves of them."""

DIVIDED: list[tuple[tuple[int, int], tuple[Any, ...]]] = [
    *[((16, 6), BOTH)] * 6,
    ((5, 7), BOTH),  # parts of different sizes
    ((1, 3), BOTH),  # and empty ones
    ((16, 6), (Replicate(), ROWS, COLUMNS)),
    ((9, 5), (Replicate(), COLUMNS, ROWS)),
    ((4, 4), (Replicate(), ROWS, Replicate())),
    ((4, 6), (Replicate(), ROWS, Replicate())),
    ((4, 8), (Replicate(), ROWS, Replicate())),
    ((3, 3), (Replicate(), Replicate(), Replicate())),
]


@pytest.mark.slow
def test_every_rank_gets_its_part_of_what_the_owner_computes() -> None:
    ranks.run(__file__, "check", RANKS)


def check(_rank: int) -> None:
    mesh = init_device_mesh("cpu", tuple(AXES.values()), mesh_dim_names=tuple(AXES))
    wholes = [torch.randn(shape, generator=_seeded(n)) for n, (shape, _) in enumerate(DIVIDED)]
    tensors = [_divided(whole, mesh, how) for whole, (_, how) in zip(wholes, DIVIDED, strict=True)]
    computed: list[torch.Tensor] = []

    def compute(whole: torch.Tensor) -> torch.Tensor:
        computed.append(whole)
        return whole @ whole.T @ whole  # what no part of it tells

    found = on_owners(tensors, DTensor.to_local, compute, dtype=torch.float32)
    parts = {id(tensor): part for tensor, part in found}
    for whole, tensor in zip(wholes, tensors, strict=True):
        assert torch.equal(parts[id(tensor)], part_of(whole @ whole.T @ whole, tensor))
    assert all(any(torch.equal(one, whole) for whole in wholes) for one in computed)
    # Each copy of the first eight, and of the two after them, is shared by four ranks; of the next
    # three by two; and all have the last.
    everywhere = torch.tensor(len(computed))
    torch.distributed.all_reduce(everywhere)
    assert int(everywhere) == 2 * (8 + 2) + 4 * 3 + 8
    assert len(computed) <= 3 + 1 + 2 + 1


def _divided(whole: torch.Tensor, mesh: Any, placements: tuple[Any, ...]) -> DTensor:
    empty = DTensor.from_local(
        torch.empty(0), mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )
    return DTensor.from_local(
        part_of(whole, empty),
        mesh,
        placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )


def _seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)
