"""A value is read as it was written, on the command line and in files, or refused in a sentence.

Torch is not needed to see any of these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

TINY = ("tokenizer=bytes", "training.seq_len=64", "device=cpu", "metrics=none")

FILES: dict[str, tuple[str, str]] = {
    # what an experiment's file says: the text, and what is said of it
    "base 8": ("training: {steps: 010}", "x.yaml, line 2: YAML reads 010 as 8; valid: 8, or '010'"),
    # 90 hours, and not an hour and a half
    "base 60": (
        "launcher: {time: 1:30:00}",
        "x.yaml, line 2: YAML reads 1:30:00 as 5400; valid: 5400, or '1:30:00'",
    ),
    "a key twice": (
        "training: {steps: 3}\ntraining: {global_batch_size: 8}",
        "x.yaml, line 3: the key training is there twice",
    ),
    # It deleted what other files set in the section, unless the command line set something in it.
    "no section": ("training:", "training=null ({file}): must be a section of keys"),
    "a list for a section": ("optimizer: [1]", "optimizer=[1] ({file}): must be a section of keys"),
    "null for a number": (
        "training: {steps: null}",
        "training.steps=null ({file}): valid: a whole",
    ),
    "no such options": (
        "defaults: [{override /precision: [a, b]}]",
        ": there is no such option; valid: bfloat16, bfloat16_weights, float32",
    ),
}

TYPED: dict[str, str] = {
    # arguments, of which the last is at fault: what is said of it
    "training=[]": "training (command line): must be a section of keys",
    "optimizer.betas=[true,0.9]": "optimizer.betas=[true, 0.9] (command line): valid: a finite",
    "optimizer.name=null": "optimizer.name=null (command line): must be text",
    "training.steps=3 +training.steps=4": "+training.steps=4 (command line): has a value already",
    "training.steps=3 ~training.steps=4": "~training.steps=4 (command line): removes nothing",
    "training.steps=${oc.env:ABSENT}": (
        "training.steps (command line): the environment variable ABSENT is not set"
    ),
    "training.steps=${training.steps}": "training.steps (command line): refers to itself",
    "training@optimizer=x": "training@optimizer=x (command line): there is no group training",
    # They were dropped in silence.
    "precision=[a,b]": "precision=b (command line): there is no such option; valid: bfloat16",
    "compile=[of]": "compile=of (command line): there is no such option; did you mean off?",
    "+experiment=[frist_run]": "experiment=frist_run (command line): there is no such option; did",
}


@pytest.mark.parametrize("case", FILES)
def test_a_file(case: str, forked: Callable, tmp_path: Path) -> None:
    text, says = FILES[case]
    file = tmp_path / "conf" / "experiment" / "x.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{text}\n")
    own = ("--config-dir=conf", "+experiment=x", "training.seq_len=64", "optimizer.lr=1e-3")
    refused(own, says.replace("{file}", str(file)), forked, tmp_path)


@pytest.mark.parametrize("words", TYPED)
def test_typed(words: str, forked: Callable, tmp_path: Path) -> None:
    refused(words.split(), TYPED[words], forked, tmp_path)


def refused(words: object, says: str, forked: Callable, place: Path) -> None:
    result = forked("train", *TINY, *words, "run.dir=run", cwd=place)
    assert result.returncode == 2, result.stdout + result.stderr
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (place / "run").exists()


def test_a_reference_to_a_neighbour(forked: Callable, tmp_path: Path) -> None:
    """A typed reference is relative to its key, wherever ATOM reads the command line."""
    words = ("training.steps=${.seq_len}", "--cfg", "job", "--resolve")
    result = forked("train", *TINY, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(result.stdout)["training"]["steps"] == 64
