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
