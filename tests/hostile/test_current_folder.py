"""A file in the current folder, or in a run folder, is never taken for a module of Python's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHADOWS = ("argparse", "json", "yaml", "socket", "tempfile", "torch", "numpy", "hydra", "pickle")
ATOM = [str(Path(sys.executable).with_name("atom"))]
MODULE = [sys.executable, "-m", "atom"]


def shadow(folder: Path, canary: Path) -> None:
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\n")


def children(cwd: Path, environment: dict[str, str]) -> str:
    """Return the first import path of a Python that a command of ATOM's would start."""
    code = (
        "import subprocess, sys; from atom.cli import main; main(['--version'])\n"
        "print(subprocess.check_output([sys.executable, '-c', 'import sys; print(sys.path)']))"
    )
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_what_a_command_starts_leaves_it_out(tmp_path: Path, environment: dict[str, str]) -> None:
    kept = {name: value for name, value in environment.items() if name != "PYTHONSAFEPATH"}
    assert "['', " not in children(tmp_path, kept)


@pytest.mark.slow
def test_no_command_imports_from_it(
    tmp_path: Path, environment: dict[str, str], small: tuple[str, ...]
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "cwd").mkdir()
    shadow(tmp_path / "cwd", canary)
    run = tmp_path / "cwd" / "run"

    def command(*words: str, cwd: Path = run) -> None:
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
        assert not canary.exists(), words
        assert done.returncode == 0, done.stderr

    train = (*MODULE, "train", *small, "training.steps=1", "metrics=none", "run.dir=run")
    command(*train, cwd=run.parent)
    shadow(run, canary)
    command(*ATOM, "generate", ".", "hello", "--tokens=2", "--device=cpu")
    command(*MODULE, "export", ".", "--to=hf", f"--out={tmp_path / 'out'}")
    command(*MODULE, "report", ".")
    command(*ATOM, "status", ".")
    command(*MODULE, "bench", "--help")
    command(*MODULE, "new", "dataset", "--help")
