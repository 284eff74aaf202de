"""Run ``interpreted.py`` in Triton's interpreter and on a GPU; look at the launch table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atom_kernels_triton import tuning

WHERE = {
    "interpreter": {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    "cuda": {"TRITON_INTERPRET": "0", "ATOM_TEST_DEVICE": "cuda"},
}


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("interpreter", marks=pytest.mark.slow),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
def test_functions_agree(where: str) -> None:
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", Path(__file__).with_name("interpreted.py")],
        env={n: v for n, v in os.environ.items() if n != "ATOM_TEST_DEVICE"} | WHERE[where],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:]


def test_every_launch_of_the_table_could_be_tried() -> None:
    for kernel, capabilities in tuning.table().items():
        for rows in capabilities.values():
            for row in rows:
                wanted = tuning.Launch(row["rows"], row["num_warps"])
                tried = {launch.rows for launch in tuning.candidates(row["width"])}
                assert wanted.rows in tried, kernel
                assert wanted.num_warps in (1, 2, 4, 8, 16), kernel


def test_a_width_that_is_not_in_the_table_is_guessed_on_a_cpu() -> None:
    like = torch.empty(0)
    assert tuning.launch("rms_norm", 100, like, pytest.fail) == tuning.guess(100)
    for width in (1, 100, 4096, 65536):
        launch = tuning.guess(width)
        assert launch.rows >= 1
        assert launch.num_warps & (launch.num_warps - 1) == 0
