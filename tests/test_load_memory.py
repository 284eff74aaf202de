"""No process holds a whole model as it exports it, or as it loads its share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

PROGRAM = """
import json, sys
from pathlib import Path

import load_memory

found = load_memory.measure(load_memory.LLAMA, Path(sys.argv[1]))
print(json.dumps([load_memory.LIMIT, *found.shares]))
"""


@pytest.mark.slow
def test_no_process_holds_the_model(tmp_path: Path) -> None:
    # Its processes are forked, and this one has threads.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    limit, exported, loaded = json.loads(done.stdout.splitlines()[-1])
    assert exported <= limit, f"export took {exported:.0%} of the model"
    assert loaded <= limit, f"a rank took {loaded:.0%} of the model beside its share"
    assert loaded > 0.2, "no rank can load a quarter of the model in less"
