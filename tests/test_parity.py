"""The command trains the same twice, and goes on after a stop, under another layout too.

That every layout trains alike is what the conformance kit holds (``atom.testing.runs``): of each
architecture, and of the layouts of ``plugins/atom-parallelism``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4
"""|difference in loss| at every step, in float32. Seen: about 1e-6."""


def test_same_command_twice_gives_the_same_bits(train: Callable, tmp_path: Path) -> None:
    overrides = ("parallelism=tp", "parallelism.data_parallel_shard_degree=2")
    first = train(tmp_path / "first", *overrides)
    second = train(tmp_path / "second", *overrides)
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    assert [row["grad_norm"] for row in first] == [row["grad_norm"] for row in second]


def test_resumed_run_goes_on_as_if_it_had_not_stopped(train: Callable, tmp_path: Path) -> None:
    layout = ("parallelism=fsdp", "launch.ranks=2", "checkpoint.interval=3")
    whole = train(tmp_path / "whole", *layout, "training.steps=6")

    train(tmp_path / "stopped", *layout, "training.steps=3")
    shutil.copytree(tmp_path / "stopped", tmp_path / "moved")
    resumed = train(tmp_path / "stopped", *layout, "training.steps=6")
    assert [row["step"] for row in resumed] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    assert [row["data"] for row in resumed] == [row["data"] for row in whole]
    assert len({row["data"] for row in whole}) == len(whole)
    assert [row["tokens_seen"] for row in resumed] == [row["tokens_seen"] for row in whole]

    moved = train(tmp_path / "moved", "parallelism=tp", "training.steps=6")
    for row, reference in zip(moved, whole, strict=True):
        assert row["loss"] == pytest.approx(reference["loss"], abs=TOLERANCE)
        assert row["data"] == reference["data"]
        assert row["tokens_seen"] == reference["tokens_seen"]
