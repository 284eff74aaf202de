"""Every layout trains the same model: same initial weights, same global batches, same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOLERANCE = 2e-4
"""|difference in loss| at every step, in float32. Seen: about 1e-6."""

LAYOUTS = {
    "fsdp": ("parallelism=fsdp", "launch.ranks=2"),
    "hsdp": ("parallelism=hsdp", "launch.ranks=4"),
    "tp": ("parallelism=tp",),
    "pp-1f1b": ("parallelism=pp",),
    "pp-interleaved": (
        "parallelism=pp",
        "parallelism.pipeline_parallel_schedule=Interleaved1F1B",
        "parallelism.pipeline_parallel_microbatch_size=2",
    ),
    "cp": ("parallelism=cp",),
    "fsdp-accumulating": ("parallelism=fsdp", "launch.ranks=2", "training.local_batch_size=2"),
    "tp-pp-two-sequences": (
        "parallelism=tp",
        "parallelism.pipeline_parallel_degree=2",
        "parallelism.pipeline_parallel_microbatch_size=2",
    ),
    "4d": ("parallelism=4d", "parallelism.pipeline_parallel_microbatch_size=2"),
}


@pytest.fixture(scope="module")
def single(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return train(tmp_path_factory.mktemp("single") / "run", "parallelism=single")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_rank(
    layout: str, single: list[dict], train: Callable, tmp_path: Path
) -> None:
    rows = train(tmp_path / "run", *LAYOUTS[layout])
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for row, reference in zip(rows, single, strict=True):
        assert row["loss"] == pytest.approx(reference["loss"], abs=TOLERANCE)
        assert row["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-3)
        assert row["tokens_seen"] == reference["tokens_seen"]
    assert single[-1]["loss"] < single[0]["loss"], "nothing was learnt"


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
    resumed = train(tmp_path / "stopped", *layout, "training.steps=6")
    assert [row["step"] for row in resumed] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    assert [row["tokens_seen"] for row in resumed] == [row["tokens_seen"] for row in whole]

    train(tmp_path / "moved", *layout, "training.steps=3")
    for other in ("parallelism=tp", "parallelism=single"):
        moved = train(tmp_path / "moved", other, "checkpoint.interval=3", "training.steps=6")
        for row, reference in zip(moved, whole, strict=True):
            assert row["loss"] == pytest.approx(reference["loss"], abs=TOLERANCE)
            assert row["tokens_seen"] == reference["tokens_seen"]
