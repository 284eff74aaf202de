"""Liger's kernels in Triton's interpreter: ``interpreted.py``, and in a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from atom.testing import ranks, runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed"),
]

QWEN = {
    "name": "qwen3",
    "dim": 32,
    "n_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "hidden_dim": 64,
}
"""Of the package atom-qwen3."""


def test_ligers_kernels_agree_in_tritons_interpreter() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", Path(__file__).with_name("interpreted.py")],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]


def test_a_run_with_them_is_one_with_the_references() -> None:
    liger = {"default": "auto", "rope_halves": "liger", "linear_cross_entropy": "liger"}
    few = {"steps": 2, "seq_len": 16, "global_batch_size": 2}
    training = runs.sections(QWEN)["training"] | few
    losses = []
    for chosen in liger, {"default": "reference"}:
        run = runs.sections(
            QWEN, training=training, optimizer={"name": "AdamW", "lr": 1e-2}, kernels=chosen
        )
        losses.append([row.loss for row in runs.train(run, interpreted=True)])
        lock = json.loads((ranks.shared(interpreted=True).place(run) / "lock.json").read_text())
        kernels = {row["operation"]: row["kernel"] for row in lock["kernels"]}
        assert kernels["rope_halves"] == chosen.get("rope_halves", "reference")
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
