"""Absurd sizes are refused by arithmetic, before anything is built of them."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ABSURD = {
    "architecture.n_layers=10000000": "at most 10000",
    "architecture.n_layers=1000000000000": "at most 10000",
    "architecture.dim=1000000000": "at most 1048576",
    "architecture.n_heads=1000000000": "at most 1048576",
    "architecture.vocab_size=1000000000000": "at most 1073741824",
    "architecture.max_seq_len=1000000000000": "at most 1073741824",
    "training.seq_len=1000000000000": "from 1 to 1073741824",
    "training.global_batch_size=1000000000000": "from 1 to 1000000000",
    "training.local_batch_size=1000000000000": "from 1 to 1000000000",
    "training.steps=1000000000000000000": "from 1 to 1000000000000",
    "launch.ranks=1000000000": "at most 1000000",
    "loss.num_chunks=1000000000": "at most 1048576",
    "launcher.nodes=1000000000": "at most 1000000",
    "parallelism.tensor_parallel_degree=1000000000": "from 1 to 1000000",
}


@pytest.mark.parametrize("override", ABSURD)
def test_an_absurd_size(override: str, forked: Callable, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    begin = time.monotonic()
    launcher = ("launcher=slurm",) if override.startswith("launcher.") else ()
    result = forked("train", "tokenizer=bytes", *launcher, override, cwd=tmp_path, timeout=60)
    took = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert result.returncode == 2, result.stderr
    assert override in result.stderr
    assert ABSURD[override] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
    # Of a processor, which others may use: a second on a quiet machine.
    assert took < 5, time.monotonic() - begin
