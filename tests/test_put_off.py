"""What a run does not use is not imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys

from atom.titan.boot import boot

boot("cpu")
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


CONFIG = """
import sys
from pathlib import Path

from atom.titan.boot import boot

boot("cpu")
from atom.plugin import PreparedTokenizer
from atom.recipe.run import parse
from atom.registry.host import Host
from atom.registry.select import select
from atom.titan.preflight.preflight import preflight
from atom.titan.trainer_config import trainer_config

named = {"tokenizer": "bytes", "dataset": "stdlib", "parallelism": "mesh", "optimizer": "AdamW"}
sections = {section: {"name": name} for section, name in named.items()}
sections["architecture"] = {"name": "llama3", "dim": 64, "n_layers": 2, "n_heads": 4}
run, host, place = parse(sections | {"device": "cpu"}), Host.load(), Path("nowhere")
tokenizer = PreparedTokenizer(vocab_size=320)
ready = preflight(run, select(run, host), host, place, tokenizer=tokenizer, joined=1).run
trainer_config(ready, select(ready, host), host, place)
assert not {"datasets", "pandas"} & sys.modules.keys()
"""


@pytest.mark.slow
def test_the_config_of_a_run_needs_no_datasets() -> None:
    """torchtitan's validation is a part of it, though no run validates."""
    done = subprocess.run(
        [sys.executable, "-c", CONFIG], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
