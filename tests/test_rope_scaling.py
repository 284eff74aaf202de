"""RoPE is scaled in every family as ``transformers`` scales it, beyond the original length."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from families import FAMILIES

from atom.registry.host import Host
from atom.testing import models
from atom.testing.hugging_face import assert_same_logits

LINEAR = {"type": "linear", "factor": 4.0}
LLAMA = {
    "type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 8,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
}
SHARP = YARN | {"attention_factor": 1.5}
WITH_MSCALE = YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}
SECTIONS = {
    "linear": LINEAR,
    "llama3": LLAMA,
    "yarn": YARN,
    "sharp": SHARP,
    "with mscale": WITH_MSCALE,
}
"""The key ``rope_scaling`` of a ``config.json``, and of a run."""

CASES = [
    ("llama3", "linear", "llama3", "yarn", "sharp"),
    ("qwen3, tied", "llama3", "yarn"),
    ("qwen3_moe", "yarn"),
    ("olmo2", "linear", "llama3", "yarn"),
    ("qwen3_5", "linear", "sharp"),
    ("gpt_oss", "linear", "yarn", "sharp"),
    ("deepseek_v3", "linear", "llama3", "with mscale"),
]


@pytest.fixture(scope="module", autouse=True)
def transformers_without_fla() -> None:
    """``transformers`` would take FLA's kernels for Qwen3.5, which need a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fla", None)
        importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "scaling"), [(family, each) for family, *kinds in CASES for each in kinds]
)
def test_logits_are_those_of_transformers(family: str, scaling: str, tmp_path: Path) -> None:
    """The export's ``rope_parameters`` are those of the section, and the model computes them."""
    section = SECTIONS[scaling]
    architecture = FAMILIES[family] | {"rope_scaling": section}
    exported = models.subject(Host.load(), architecture).parts.hf_config
    assert exported is not None
    found = dict(exported["rope_parameters"])
    wanted = {"rope_type": section["type"]} | section
    wanted.pop("type")
    if family == "gpt_oss" and wanted["rope_type"] == "yarn":
        wanted["truncate"] = False
    beside = {"rope_theta", "partial_rotary_factor", "mrope_interleaved", "mrope_section"}
    assert {key: value for key, value in found.items() if key not in beside} == wanted
    counterpart = {k: v for k, v in exported.items() if k not in ("architectures", "vocab_size")}
    assert_same_logits(architecture, counterpart, tmp_path)


REFUSED = {
    "rope_scaling.type=dynamic rope_scaling.factor=2": (
        "rope_scaling.type=dynamic",
        "is no scaling of RoPE that ATOM computes; valid: linear, llama3, yarn, or "
        "architecture.rope_scaling=none",
    ),
    "rope_scaling.type=linear rope_scaling.factor=2 rope_scaling.beta_fast=3": (
        "rope_scaling.beta_fast=3",
        "is no key of RoPE scaling by linear; valid: factor",
    ),
    "rope_scaling.type=yarn": ("rope_scaling.factor", "is needed; valid: a number above 1"),
    "rope_scaling.type=yarn rope_scaling.factor=2 rope_scaling.mscale=1": (
        "rope_scaling",
        "mscale and mscale_all_dim belong together; valid: both, or neither",
    ),
    "rope_scaling.type=yarn rope_scaling.factor=x": ("rope_scaling.factor=x", "must be a number"),
    "rope_scaling.type=yarn rope_scaling.factor=0.5": ("rope_scaling.factor=0.5", "1"),
    "rope_scaling=yarn": ("rope_scaling=yarn", "has no effect with architecture.rope_factor=1.0"),
    "rope_factor=2": ("rope_factor=2", "has no effect with architecture.rope_scaling=none"),
    "rope_scaling=yarn rope_factor=0.5": ("rope_factor=0.5", "at least 1"),
    "rope_scaling=yarn rope_factor=2 rope_beta_slow=64": ("rope_beta_slow=64", "must be below"),
}


@pytest.mark.parametrize("typed", REFUSED)
def test_a_scaling_that_would_not_be_computed_is_refused(
    forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, typed: str
) -> None:
    overrides = [f"architecture.{each}" for each in typed.split()]
    done = forked("train", "architecture=qwen3_tiny", "tokenizer=bytes", *overrides, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    (sentence,) = done.stderr.splitlines()
    key, words = REFUSED[typed]
    assert sentence.startswith(f"atom: architecture.{key}"), sentence
    assert words in sentence


SMALL = (
    *("architecture=qwen3_tiny", "architecture.n_layers=1", "architecture.dim=32"),
    *("tokenizer=bytes", "training.global_batch_size=2", "training.steps=1", "device=cpu"),
    *("metrics=none", "architecture.n_heads=2", "architecture.n_kv_heads=1"),
)
LONGER = ("training.seq_len=64", "checkpoint.initial_load=short")
SCALED = ("architecture.rope_scaling.type=linear", "architecture.rope_scaling.factor=4")


@pytest.mark.slow
def test_a_stage_extends_the_context(
    atom: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """It loads weights without scaling, and says so; those of another scaling are refused."""
    done = atom("train", *SMALL, "training.seq_len=16", "run.dir=short", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = atom("train", *SMALL, *LONGER, *SCALED, "run.dir=long", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    note = "checkpoint.initial_load=short: was trained without scaling of RoPE, and this run has"
    assert note in done.stdout + done.stderr
    back = ("checkpoint.initial_load=long", "dry_run=true")
    done = atom("train", *SMALL, "training.seq_len=64", *back, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert "is of another model" in done.stderr
    assert "architecture.rope_scaling=linear architecture.rope_factor=4.0" in done.stderr
