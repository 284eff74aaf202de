"""Every pipeline schedule, and data parallelism with its likes, trains what one rank does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from atom.run_dir import checkpoint
from atom.testing import partners, ranks, runs
from atom.titan.saved_model import Checkpoint

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

FIVE: dict[str, Any] = {
    "data_parallel_shard_degree": 2,
    "tensor_parallel_degree": 2,
    "pipeline_parallel_degree": 2,
    "pipeline_parallel_schedule": "1F1B",
    "context_parallel_degree": 2,
}

PIPELINE: dict[str, Any] = {"data_parallel_shard_degree": 1, "pipeline_parallel_degree": 2}
TWO_SEQUENCES = {"pipeline_parallel_microbatch_size": 2}
SCHEDULES = (
    "GPipe",
    "Interleaved1F1B",
    "InterleavedZeroBubble",
    "LoopedBFS",
    "ZBVZeroBubble",
    "DualPipeV",
)
"""1F1B is that of the conformance suite."""

LAYOUTS: dict[str, dict[str, Any]] = {
    schedule: PIPELINE | {"pipeline_parallel_schedule": schedule} for schedule in SCHEDULES
} | {
    "Interleaved1F1B of two sequences": PIPELINE
    | TWO_SEQUENCES
    | {"pipeline_parallel_schedule": "Interleaved1F1B"},
    "1F1B of two sequences beside TP": PIPELINE
    | TWO_SEQUENCES
    | {"pipeline_parallel_schedule": "1F1B", "tensor_parallel_degree": 2},
    "replicas": {"data_parallel_replicate_degree": 2, "data_parallel_shard_degree": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_train_alike(layout: str) -> None:
    runs.assert_trains_alike(LLAMA, LAYOUTS[layout])


@pytest.mark.slow
def test_gradients_of_several_batches_add_up() -> None:
    """Each of two ranks takes one of its two sequences at a time."""
    training = runs.sections(LLAMA)["training"] | {"local_batch_size": 1}
    runs.assert_trains_alike(LLAMA, {"data_parallel_shard_degree": 2}, training=training)


@pytest.mark.slow
def test_a_loss_in_chunks_is_that_of_the_whole() -> None:
    """Under tensor parallelism; that of validation, too."""
    runs.assert_trains_alike(LLAMA, runs.LAYOUTS["tp"], loss={"num_chunks": 4})


@pytest.mark.slow
def test_experts_over_all_ranks_of_a_stage_train_alike() -> None:
    """4D on 8 ranks, the experts shared out by 4. On 16 ranks, by 2, the five dimensions begin and
    go on in ``test_a_checkpoint_of_one_layout_goes_on_under_another``."""
    runs.assert_trains_alike(MIXTURE, runs.LAYOUTS["4d"] | {"expert_parallel_degree": 4})


RESHARDED: dict[str, dict[str, Any]] = {
    "5d": FIVE | {"expert_parallel_degree": 2},
    "ep": {"data_parallel_shard_degree": 2, "expert_parallel_degree": 2},
    "tp-pp": {
        "data_parallel_shard_degree": 1,
        "tensor_parallel_degree": 2,
        "pipeline_parallel_degree": 2,
        "pipeline_parallel_schedule": "1F1B",
    },
    "single": runs.SINGLE,
}
"""Each is loaded from a checkpoint of the one before, the first from one of the last."""


@pytest.mark.slow
@pytest.mark.parametrize("layout", RESHARDED)
def test_a_checkpoint_of_one_layout_goes_on_under_another(layout: str) -> None:
    """Weights, optimizer and place in the data: the losses are those of a run that never moved.

    A checkpoint says the same under every layout, so whatever loads one loads all.
    """
    names = list(RESHARDED)
    before = runs.sections(MIXTURE, RESHARDED[names[names.index(layout) - 1]])
    steps = runs.RESUMED_STEPS
    rows = runs.train(runs.sections(MIXTURE, RESHARDED[layout], steps=steps), after=before)
    runs.assert_same(rows, runs.on_one_rank(MIXTURE, steps=steps))

    single = runs.sections(MIXTURE)
    runs.train(single)
    found, expected = saved(before), saved(single)
    # Each rank has its own random state; all else is the same.
    names_of = [
        {n for n in each.tensors if not n.startswith("random.")} for each in (found, expected)
    ]
    assert names_of[0] == names_of[1]
    moments = [name for name in expected.tensors if name.endswith(".exp_avg_sq")]
    assert moments, "no state of the optimizer is saved"
    for name in moments:
        ours, theirs = found.read(name), expected.read(name)
        assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-8), name


def saved(run: runs.Sections) -> Checkpoint:
    """Return the last checkpoint of a run that was trained."""
    place = ranks.shared().place(run) / checkpoint.FOLDER
    return Checkpoint(checkpoint.step_folder(place, checkpoint.steps(place)[-1]))
