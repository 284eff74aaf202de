"""Runs with the kernels, in Triton's interpreter, beside runs with the references."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
"""|difference in loss| in float32, beside losses of about 6."""

SMALL = (
    "architecture=llama3_tiny",
    "architecture.dim=32",
    "architecture.n_layers=1",
    "tokenizer=bytes",
    "training.seq_len=16",
    "training.global_batch_size=2",
    "optimizer.lr=1e-2",
    "lr_scheduler.warmup_steps=1",
    "lr_scheduler.total_steps=20",
    "metrics.enable_tensorboard=false",
    "device=cpu",
)


def train(
    folder: Path, *overrides: str, interpret: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atom", "train", *SMALL, f"run.dir={folder}", *overrides],
        env=os.environ | {"TRITON_INTERPRET": str(int(interpret)), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def losses(folder: Path) -> list[float]:
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def test_kernels_can_be_swapped_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """Two steps with the references and one with the kernels: the losses of three of the first."""
    reference, swapped = tmp_path / "reference", tmp_path / "swapped"
    for folder, steps, kernels in (
        (reference, 3, "reference"),
        (swapped, 2, "reference"),
        (swapped, 3, "hopper"),
    ):
        result = train(
            folder, f"training.steps={steps}", f"kernels={kernels}", "checkpoint.interval=2"
        )
        assert result.returncode == 0, result.stdout + result.stderr
    assert "resumed after step 2" in result.stdout
    resolved: dict[str, Any] = json.loads((swapped / "lock.json").read_text())
    chosen = {row["operation"]: row["kernel"] for row in resolved["kernels"]}
    assert chosen["rms_norm"] == chosen["rope"] == chosen["feed_forward"] == "triton"
    assert chosen["linear_cross_entropy"] == "triton"
    assert "cross_entropy" not in chosen
    assert losses(swapped) == pytest.approx(losses(reference), abs=TOLERANCE)
    assert len(losses(swapped)) == 3


def test_without_the_interpreter_a_cpu_refuses_them(tmp_path: Path) -> None:
    given = ("training.steps=1", "kernels.rms_norm=triton")
    result = train(tmp_path / "run", *given, interpret=False)
    assert result.returncode == 2
    assert "TRITON_INTERPRET=1" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "layout",
    [
        ("parallelism=pp", "launch.ranks=2", "architecture.n_layers=2"),
        ("parallelism=cp", "launch.ranks=2", "training.seq_len=32"),
        ("compile.enable=true",),
    ],
    ids=["pp", "cp", "compiled"],
)
def test_all_of_them_under_a_layout(layout: tuple[str, ...], tmp_path: Path) -> None:
    """Together, where the suite of a kernel has each by itself. Blocks are compiled as one graph:
    the compiler takes each kernel as it is."""
    for kernels in "reference", "hopper":
        folder, given = tmp_path / kernels, ("training.steps=2", "checkpoint.enable=false")
        result = train(folder, f"kernels={kernels}", *given, *layout)
        assert result.returncode == 0, result.stdout + result.stderr
    assert "triton" in result.stdout
    assert losses(tmp_path / "hopper") == pytest.approx(
        losses(tmp_path / "reference"), abs=TOLERANCE
    )
