"""What a hostile reader of the documentation has tried, and what has come of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.testing.installing import describe

Command = Callable[..., subprocess.CompletedProcess[str]]

TINY = (
    *("architecture=llama3_tiny", "architecture.n_layers=2", "architecture.dim=64"),
    *("tokenizer=bytes", "training.seq_len=64", "training.global_batch_size=4"),
    *("training.steps=2", "device=cpu", "metrics=none"),
)


@pytest.fixture
def site(tmp_path: Path, forked: Command) -> Path:
    """A folder for ``PYTHONPATH`` with the launcher that ``atom new`` makes; the jobs run here."""
    made = forked("new", "launcher", "my-launcher", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    describe(tmp_path / "my-launcher", "my-launcher")
    return tmp_path / "my-launcher"


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        ("launcher.time=30",),
        ("launcher.mounts=[/data:/data]",),
        ("launcher.nodes=2", "parallelism=fsdp", "launch.ranks=2"),
    ],
)
def test_a_resource_that_a_launcher_does_not_look_at_is_refused(
    asked: tuple[str, ...], site: Path, atom: Command
) -> None:
    """It trained without the limit, the mount and the second machine, with exit code 0."""
    result = atom(
        *("train", *TINY, "launcher=my_launcher", *asked, "run.dir=run"),
        cwd=site.parent,
        PYTHONPATH=str(site),
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert f"{asked[0].partition('=')[0]}=" in result.stderr
    assert "has no effect with launcher.name=my_launcher; valid: " in result.stderr
    assert not (site.parent / "run").exists()


@pytest.mark.slow
def test_the_kit_finds_a_resource_that_a_launcher_does_not_look_at(site: Path) -> None:
    test = site / "test_it.py"
    test.write_text(
        "from atom.testing import conformance\n"
        "TestAll = conformance('launcher:my_launcher')\n"
        "TestLess = conformance('launcher:my_launcher').having(unsupported=dict.fromkeys("
        "('nodes', 'time', 'image', 'mounts'), 'a script'))\n"
    )
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", f"--rootdir={site}", "-c", os.devnull),
            *("-p", "no:cacheprovider", "-rf", str(test), "-k", "handed_on or lacks"),
        ],
        cwd=site,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1, result.stdout
    assert "TestAll::test_resources_are_handed_on" in failed[0]
    assert "launcher.nodes: the plan has not looked at this" in result.stdout, result.stdout


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("train", *TINY, "dataset=local", f"dataset.path=/tmp/{LONG}"),
        ("train", *TINY, f"{LONG}=1"),
        ("train", *TINY, "--config-dir", LONG),
        ("logs", LONG),
        ("new", "dataset", LONG),
    ],
)
def test_a_name_that_no_file_can_have_is_the_users_mistake(
    words: tuple[str, ...], tmp_path: Path, forked: Command
) -> None:
    """It ended with exit code 1, and named a file within Hydra."""
    result = forked(*words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    said = next(word for word in words if LONG in word)[:60]
    assert result.stderr == (
        f"atom: {said}…: is too long for the name of a file; valid: a shorter one\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_text_that_is_too_short_has_characters(tmp_path: Path, atom: Command) -> None:
    """It had "at least 3 entries"."""
    result = atom("train", *TINY, "launcher=skypilot", "launcher.bucket=b", cwd=tmp_path)
    assert result.returncode == 2
    assert "launcher.bucket=b (command line): must have at least 3 characters" in result.stderr
