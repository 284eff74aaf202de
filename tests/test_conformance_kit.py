"""The conformance kit as a pytest plugin: what it costs, and what an author gets wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atom.testing import conformance


def ran(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on a test module, with ATOM's plugin as its only one."""
    (folder / "test_it.py").write_text(module)
    plugins = ("-p", "atom.testing.plugin", "-p", "no:cacheprovider")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "--strict-markers", *arguments],
        cwd=folder,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_session_without_the_kit_imports_nothing_for_it(tmp_path: Path) -> None:
    module = """
import sys

def test_it():
    assert "atom.testing.plugin" in sys.modules
    heavy = {"torch", "torchtitan", "pydantic", "hypothesis", "numpy", "hydra", "yaml"}
    heavy.add("atom.registry.host")
    assert not heavy & set(sys.modules)
"""
    done = ran(tmp_path, module)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_pytest_finds_the_plugin_by_itself(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(): pass")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--markers"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "@pytest.mark.slow: starts several ranks" in done.stdout


@pytest.mark.parametrize("component", ["tokeniser:bytes", "bytes", "tokenizer:", ""])
def test_a_component_of_no_kind(component: str) -> None:
    with pytest.raises(ValueError, match="is not KIND:NAME with a kind of tokenizer, architecture"):
        conformance(component)


def test_an_option_that_the_kind_has_not() -> None:
    with pytest.raises(ValueError, match="DatasetSuite has no option lossy; valid: "):
        conformance("dataset:local").having(lossy="no dataset is")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('conformance("tokenizer:bites")', "there is no tokenizer bites; did you mean bytes"),
        ('conformance("tokenizer:bytes", pad=1)', "pad is no key here; did you mean pad_to?"),
    ],
)
def test_what_is_not_there_is_told_in_one_sentence(line: str, says: str, tmp_path: Path) -> None:
    module = f"from atom.testing import conformance\n\nTestIt = {line}\n"
    done = ran(tmp_path, module, "-k", "pickles", "--tb=short")
    assert done.returncode == 1
    assert says in done.stdout
    assert "Traceback" not in done.stdout
    assert "atom/registry/host.py" not in done.stdout


def test_a_class_for_each_line() -> None:
    first, second = conformance("tokenizer:bytes"), conformance("tokenizer:bytes", pad_to=1)
    assert first is not second
    assert (first.parameters, second.parameters) == ({}, {"pad_to": 1})
    assert first.having(lossy="it is").lossy == "it is"
    assert first.lossy is None


@pytest.mark.slow
def test_what_says_nothing_about_a_component_is_not_collected(tmp_path: Path) -> None:
    """A kernel that needs a GPU: why it is not compared here is told once."""
    module = """
from atom.testing import conformance

TestOnCuda = conformance("kernel:attention/varlen")
TestHere = conformance("kernel:rms_norm/reference")
TestLlama = conformance("architecture:llama3", dim=64, n_layers=2, n_heads=4).having(
    unsupported={"cp": "a test"}
)
"""
    collected = ran(tmp_path, module, "--collect-only", "-q").stdout
    compared = "test_agrees_with_the_reference"
    layouts = [f"TestLlama::test_layouts_train_alike[{name}]" for name in ("tp", "cp", "4d", "ep")]
    found = {
        test: f"{test}\n" in collected
        for test in (f"TestHere::{compared}", f"TestOnCuda::{compared}", *layouts)
    }
    assert list(found.values()) == [True, False, True, False, False, False], found
    assert "TestHere::test_functions_agree" in collected
    assert "TestHere::test_config_round_trips_through_yaml" not in collected, "it has no parameters"
    assert "TestHere::test_computes_sharded" not in collected, "it is torchtitan's own node"
    done = ran(tmp_path, module, "-rs", "-k", "TestOnCuda and honest")
    assert "attention/varlen needs cuda, and this is cpu" in done.stdout
    assert "1 skipped" in done.stdout
