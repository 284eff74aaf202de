"""Drive the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Small enough for seconds, large enough for every layout: 4 heads, 2 key-value heads, 4 layers.
SMALL = (
    "architecture=llama3_tiny",
    "architecture.dim=64",
    "architecture.n_layers=4",
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.steps=5",
    "optimizer.lr=1e-3",
    "lr_scheduler.warmup_steps=1",
    "lr_scheduler.total_steps=20",
    "metrics.enable_tensorboard=false",
    "device=cpu",
)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache: Path) -> dict[str, str]:
    """The user's environment, less what would make this process look like a rank or a terminal."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK") and not name.startswith("SLURM_")
    }
    return kept | {"ATOM_CACHE": str(cache), "COLUMNS": "100"}


@pytest.fixture(scope="session")
def atom(environment: dict[str, str]) -> Command:
    """Run ``atom …`` as a user would; the result's text is in stdout and stderr."""

    def run(
        *arguments: str, cwd: Path | None = None, timeout: float = 600, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "atom", *arguments],
            cwd=cwd,
            env=environment | extra,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def train(atom: Command) -> Callable[..., list[dict]]:
    """Train the small model in a folder; return the rows of its metrics.jsonl."""

    def run(place: Path, *overrides: str) -> list[dict]:
        result = atom("train", *SMALL, f"run.dir={place}", *overrides)
        assert result.returncode == 0, result.stdout + result.stderr
        return _rows(place)

    return run


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict]]:
    """Read the rows of a run's metrics.jsonl."""
    return _rows


def _rows(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
