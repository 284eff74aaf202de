"""The documentation as a reader meets it: built, typed in, and followed to a plugin."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from atom_docs.pages import DOCS, PAGES, matches, name_of, transcript, write_files

pytestmark = pytest.mark.slow

EXAMPLE = DOCS / "examples" / "atom-gated-linear-attention"

Shell = Callable[[str, Path], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def shell(installed: Callable[..., subprocess.CompletedProcess[str]]) -> Shell:
    """A shell in an environment with ATOM, its plugins and pip, where packages can be installed;
    what is said is in stdout."""

    def run(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return installed("bash", "-c", f"exec 2>&1\n{command}", cwd=cwd)

    return run


@pytest.mark.parametrize("page", [page for page in PAGES if transcript(page)], ids=name_of)
def test_transcripts_are_true(page: Path, shell: Shell, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    for step in transcript(page):
        result = shell(step.command, tmp_path)
        assert result.returncode == (2 if step.is_mistake else 0), result.stdout
        if step.output:
            assert matches(result.stdout, step.output), f"$ {step.command}\n{result.stdout}"


def test_example_conforms(shell: Shell, tmp_path: Path) -> None:
    """A plugin written from this documentation passes the suite of its kind."""
    example = shlex.quote(str(EXAMPLE))
    for command in (
        f"pip install -q --no-build-isolation -e {example}",
        f"pytest -q -rs {example}",
        f"pip uninstall -q -y {EXAMPLE.name}",
    ):
        result = shell(command, tmp_path)
        assert result.returncode == 0, result.stdout


def test_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html"]
    built = tmp_path / "built"
    result = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(built)],
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    said = (built / "reference" / "config.html").read_text()
    for key in ("training.global_batch_size", "optimizer.lr", "architecture.n_layers"):
        assert key in said
    assert "atom_architectures" in (built / "reference" / "plugin.html").read_text()
