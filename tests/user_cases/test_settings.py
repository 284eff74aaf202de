"""Settings that would train something else than they say are refused, at once and in one sentence.

Torch is not needed to see any of these, so that each is said within a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TINY = (
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "device=cpu",
    "architecture.n_layers=2",
    "architecture.dim=64",
    "metrics=none",
)

WHOLE = "a whole number from 1 up"

NUMBERS: dict[str, tuple[str, ...]] = {
    # overrides, of which the last is at fault: what is said of it
    "training.max_norm=-1": ("a number above 0",),  # turned gradients round
    "training.max_norm=0": ("a number above 0",),
    "training.max_norm=inf": ("a number above 0",),
    "training.steps=-3": (WHOLE,),
    "training.steps=true": (WHOLE,),
    "training.steps=1e30": (WHOLE,),
    "training.local_batch_size=0": (WHOLE,),
    "training.global_batch_size=-2": (WHOLE, "-1 for local_batch_size a rank"),
    "lr_scheduler.warmup_steps=-5": ("from 0 up",),
    "lr_scheduler.warmup_steps=101": ("the schedule's 100 steps", "at most 100"),
    "lr_scheduler.min_lr_factor=3": ("from 0 to 1",),
    "lr_scheduler.decay_ratio=-0.5": ("from 0 to 1",),
    "lr_scheduler.decay_ratio=nan": ("from 0 to 1",),
    "lr_scheduler.decay_ratio=0.004": ("less than one of the schedule's 100 steps", "0.01"),
    "lr_scheduler.warmup_steps=60 lr_scheduler.decay_ratio=0.5": ("leaves 40", "at most 0.4"),
    "lr_scheduler.total_steps=0": (WHOLE, "null for training.steps"),
    # The decay went on below 0, or back up to the peak.
    "training.steps=8 lr_scheduler.warmup_steps=2 lr_scheduler.total_steps=4": (
        "0 after that step",
        "training.steps=8",
        "lr_scheduler.min_lr_factor",
    ),
    "optimizer.lr=inf": ("finite",),
    "optimizer.lr=nan": ("finite",),
    "optimizer.lr=true": ("finite",),
    "optimizer.betas=[2,0]": ("less than 1",),
    "optimizer.betas=[-0.1,0.9]": ("greater than or equal to 0",),
    "optimizer.eps=0": ("greater than 0",),
    "optimizer.weight_decay=-0.1": ("greater than or equal to 0",),
    "debug.seed=-1": ("from 0 up",),
    "metrics.log_freq=0": (WHOLE,),
    "checkpoint.interval=0": (WHOLE,),
    "checkpoint.keep_latest_k=1": ("from 2 up", "0 to keep all"),
    "comm.train_timeout_seconds=0": ("from 1 to 1000000000",),
    "activation_checkpoint=memory_budget activation_checkpoint.memory_budget=1.5": ("from 0 to 1",),
    "parallelism.tensor_parallel_degree=0": (WHOLE, "-1 for what is left"),
    "parallelism=pp parallelism.pipeline_parallel_microbatch_size=0": (WHOLE,),
    "architecture.rope_theta=inf": ("finite",),
    "architecture.n_heads=true": ("finite",),
    "launch.max_restarts=true": ("finite",),
    "launch.hang_seconds=inf": ("finite",),
}


@pytest.mark.parametrize("overrides", NUMBERS)
def test_numbers_out_of_range(overrides: str, forked: Callable, tmp_path: Path) -> None:
    refused(overrides, NUMBERS[overrides], forked, tmp_path)


def refused(overrides: str, says: tuple[str, ...], forked: Callable, tmp_path: Path) -> None:
    """Check that the last override is refused at once: key and origin named, nothing written."""
    *_, last = overrides.split()
    result = forked("train", *TINY, "run.dir=run", *overrides.split(), cwd=tmp_path)
    said = result.stderr.strip()
    assert result.returncode == 2, said
    assert said.startswith(f"atom: {last.partition('=')[0]}"), said
    assert "command line" in said, said
    assert len(said.splitlines()) == 1, said
    for words in says:
        assert words in said, said
    assert not list(tmp_path.iterdir()), "something was left behind"
