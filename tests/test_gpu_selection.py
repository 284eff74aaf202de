"""``pytest -m gpu`` never passes for having compared nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "torch finds no CUDA device here"),
        ({"ATOM_TEST_DEVICE": "mps"}, "ATOM_TEST_DEVICE=mps: is no device; valid: cpu, cuda"),
    ],
)
def test_without_a_gpu_it_says_so(variables: dict[str, str], says: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "ATOM_TEST_DEVICE"}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "plugins/atom-kernels-triton"],
        cwd=ROOT,
        env=kept | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 4, result.stdout
    assert says in result.stderr
