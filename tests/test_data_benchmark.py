"""The benchmark of data runs, and reading 10⁸ documents at random takes little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*words: object) -> str:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_random_reads_of_large_shards_keep_no_pages(tmp_path: Path) -> None:
    """100 shards of 24 MB of index each, most of which stayed in memory."""
    script, folder = BENCHMARKS / "data_parts" / "scale.py", tmp_path / "shards"
    run(script, "make", folder, 100_000_000)
    found = json.loads(run(script, "steps", folder, 1024, 200))
    assert found["peak_mb"] < 300


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    told = run(BENCHMARKS / "data.py", "--quick", "--own", "--part", "scale", "--cache", tmp_path)
    assert "| 1e+07 |" in told
    assert "left out" not in told
