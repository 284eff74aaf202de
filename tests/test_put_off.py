"""What a run does not use is not imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys

from atom.titan.compat import device

device.use("cpu")
import torch
import atom.titan.preflight.preflight
import atom.titan.train.trainer

unused = {"datasets", "pandas", "torch._inductor.compile_fx"} & sys.modules.keys()
assert not unused, unused
assert torch.compile(torch.sin, backend="eager") is not torch.sin

from torchtitan.components import validate
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader

assert validate.Validator.Config().dataloader.__class__ is HuggingFaceTextDataLoader.Config
assert "datasets" in sys.modules
"""


@pytest.mark.slow
def test_a_rank_imports_no_datasets_and_no_inductor() -> None:
    """And who asks for them gets them: torchtitan's own validation, a compiled model."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "whoever imports torchao is told nothing"
