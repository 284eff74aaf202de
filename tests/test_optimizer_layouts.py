"""Optimizers train a mixture of experts on ranks of several kinds at once as on one rank.

The suite compares FSDP and tensor parallelism, each alone, on a dense model.
"""

from __future__ import annotations

from typing import Any

import pytest

from atom.testing import runs

pytestmark = pytest.mark.slow

MODEL: dict[str, Any] = {
    "name": "qwen3_moe",
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "moe_hidden_dim": 32,
    "num_experts": 8,
    "top_k": 2,
}
_EXPERTS = {"data_parallel_shard_degree": 2, "expert_parallel_degree": 2}
REPLICAS = _EXPERTS | {"data_parallel_replicate_degree": 2}
PIPELINE = _EXPERTS | {"pipeline_parallel_degree": 2}


@pytest.mark.parametrize(
    ("optimizer", "layout"),
    [
        ({"name": "Muon", "lr": 1e-3}, REPLICAS),
        ({"name": "Dion", "rank_fraction": 0.5}, REPLICAS),
        ({"name": "Dion", "rank_fraction": 0.5}, PIPELINE),
        ({"name": "Adafactor", "weight_decay": 0.1}, PIPELINE),
        ({"name": "Lion", "lr": 1e-3, "state_dtype": "bfloat16"}, REPLICAS),
    ],
    ids=lambda value: value.get("name") or ("pipeline" if value is PIPELINE else "replicas"),
)
def test_ranks_of_several_kinds_train_like_one(
    optimizer: dict[str, Any], layout: dict[str, int]
) -> None:
    one = runs.train(runs.sections(MODEL, optimizer=optimizer))
    rows = runs.train(runs.sections(MODEL, layout, optimizer=optimizer))
    runs.assert_same(rows, one, tolerance=5e-5)
