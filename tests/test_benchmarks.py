"""Every script of ``benchmarks/`` with options can be imported, and tells them."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "argparse" in path.read_text()]


@pytest.mark.parametrize("script", [*SCRIPTS, FOLDER / "gpu"], ids=lambda path: path.stem)
def test_a_benchmark_tells_its_options(script: Path, tmp_path: Path) -> None:
    """In a fork of this process, which has imported most of what it needs."""
    said = tmp_path / "said"
    child = os.fork()
    if child == 0:
        for number in (1, 2):
            os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        code = 1
        try:
            sys.argv = [str(script), "--help"]
            sys.path.insert(0, str(FOLDER))
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said.read_text()
    assert "usage: " in said.read_text()
