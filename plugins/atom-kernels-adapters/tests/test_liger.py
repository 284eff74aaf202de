"""Liger's kernels in Triton's interpreter: ``interpreted.py``, and in a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed"),
]

SMALL = (
    "architecture=qwen3_tiny",
    "architecture.dim=32",
    "architecture.n_layers=1",
    "tokenizer=bytes",
    "training.seq_len=16",
    "training.global_batch_size=2",
    "training.steps=2",
    "optimizer.lr=1e-2",
    "lr_scheduler.warmup_steps=1",
    "lr_scheduler.total_steps=20",
    "metrics.enable_tensorboard=false",
    "checkpoint.enable=false",
    "device=cpu",
)


def test_ligers_kernels_agree_in_tritons_interpreter() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", Path(__file__).with_name("interpreted.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]


def test_a_run_with_them_is_one_with_the_references(tmp_path: Path) -> None:
    runs = {
        "liger": ("kernels.rope_halves=liger", "kernels.linear_cross_entropy=liger"),
        "reference": ("kernels=reference",),
    }
    losses = {}
    for name, chosen in runs.items():
        folder = tmp_path / name
        result = subprocess.run(
            [sys.executable, "-m", "atom", "train", *SMALL, f"run.dir={folder}", *chosen],
            env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(row)["loss"] for row in rows]
    assert len(losses["liger"]) == 2
    assert losses["liger"] == pytest.approx(losses["reference"], abs=1e-4)
