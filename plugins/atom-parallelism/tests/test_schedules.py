"""Every pipeline schedule, and data parallelism with its likes, trains what one rank does."""

from __future__ import annotations

from typing import Any

import pytest

from atom.testing import partners, runs

LLAMA = {"name": f"{partners.PACKAGE}:llama"}
MIXTURE = {
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
"""Of the package atom-qwen3."""

SCHEDULES = (
    "GPipe",
    "Interleaved1F1B",
    "InterleavedZeroBubble",
    "LoopedBFS",
    "ZBVZeroBubble",
    "DualPipeV",
)
"""1F1B is that of the conformance suite."""


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_train_alike(schedule: str) -> None:
    parallelism = {
        "data_parallel_shard_degree": 1,
        "pipeline_parallel_degree": 2,
        "pipeline_parallel_schedule": schedule,
    }
    rows = runs.train(runs.sections(LLAMA, parallelism))
    runs.assert_same(rows, runs.train(runs.sections(LLAMA)))


@pytest.mark.slow
def test_replicas_train_alike() -> None:
    parallelism = {"data_parallel_replicate_degree": 2, "data_parallel_shard_degree": 1}
    rows = runs.train(runs.sections(LLAMA, parallelism))
    runs.assert_same(rows, runs.train(runs.sections(LLAMA)))


@pytest.mark.slow
@pytest.mark.parametrize("experts", [2, 8])
def test_five_dimensions_train_alike(experts: int) -> None:
    """4D and experts shared out, on 16 ranks; by 8 over all ranks of a pipeline stage."""
    parallelism: dict[str, Any] = {
        "data_parallel_shard_degree": 2,
        "tensor_parallel_degree": 2,
        "pipeline_parallel_degree": 2,
        "pipeline_parallel_schedule": "1F1B",
        "context_parallel_degree": 2,
        "expert_parallel_degree": experts,
    }
    rows = runs.train(runs.sections(MIXTURE, parallelism))
    runs.assert_same(rows, runs.train(runs.sections(MIXTURE)))
