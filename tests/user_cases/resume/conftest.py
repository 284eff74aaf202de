"""Runs that tests resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from resumed import GRADIENTS_KEPT, TINY


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        words = (f"{number} times {other} is {number * other}." for other in range(200))
        (folder / f"{number:02}.txt").write_text("\n".join(words))
    return folder


@pytest.fixture(scope="module")
def train(atom: Callable, texts: Path) -> Callable:
    """Train in a folder, and succeed; return what was said."""

    def run(place: Path, *overrides: str) -> str:
        result = atom("train", *TINY, f"dataset.path={texts}", f"run.dir={place}", *overrides)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="module")
def three_steps(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adamw") / "run"
    train(place, *GRADIENTS_KEPT, "training.steps=3")
    return place
