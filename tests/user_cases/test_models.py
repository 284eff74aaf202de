"""The model that is trained is the one that was asked for, whatever divides it among ranks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=6",
    "device=cpu",
    "architecture.dim=64",
    "metrics=none",
)
TP = "parallelism.tensor_parallel_degree=2"
SHARD = "parallelism.data_parallel_shard_degree"

REFUSED = {
    # what is asked for: what is said
    # Each of these trained a model of one more row.
    "architecture=olmo2_tiny architecture.hidden_dim=383 parallelism=tp": (
        TP,
        "must divide architecture.hidden_dim=383, dimension 0 of layers.0.feed_forward.w1.weight",
    ),
    "architecture=qwen3_tiny architecture.hidden_dim=383 parallelism=tp": (
        TP,
        "architecture.hidden_dim=383",
    ),
    "architecture=deepseek_v3_tiny architecture.dense_hidden_dim=383 parallelism=ep_tp": (
        TP,
        "architecture.dense_hidden_dim=383",
    ),
    "architecture=qwen3_5_tiny_moe architecture.shared_hidden_dim=129 parallelism=ep_tp": (
        TP,
        "architecture.shared_hidden_dim=129",
    ),
    "architecture=olmo2_tiny architecture.hidden_dim=383 parallelism=auto launch.ranks=2 "
    "parallelism.tensor_parallel_degree=2": ("architecture.hidden_dim=383",),
    # Each of these failed on every rank.
    "architecture=qwen3_tiny_moe architecture.num_experts=2 architecture.top_k=1 parallelism=fsdp "
    "launch.ranks=3": (f"{SHARD}=3", "2 experts", "architecture.moe_hidden_dim=128"),
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", REFUSED)
def test_a_size_that_does_not_divide_is_named(atom: Command, tmp_path: Path, asked: str) -> None:
    done = atom("train", *TINY, *asked.split(), "run.dir=run", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    (sentence,) = done.stderr.splitlines()
    assert all(word in sentence for word in REFUSED[asked]), sentence
    assert not list(tmp_path.iterdir())
