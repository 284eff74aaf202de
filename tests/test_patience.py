"""Ranks that hang are told from ranks that start, or work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from atom.launch.hang_timeout import Patience
from atom.recipe.sections import Launch
from atom.run_dir import heartbeat
from atom.run_dir.heartbeat import Beat

BEGIN = 1000.0


@pytest.fixture
def watch() -> Patience:
    return Patience(Launch(start_seconds=300, hang_seconds=10), BEGIN)


def test_start_up_takes_longer_than_a_step(watch: Patience) -> None:
    assert watch.complaint(None, BEGIN + 299) is None
    complaint = watch.complaint(None, BEGIN + 300)
    assert complaint is not None
    assert complaint.startswith("no first step in 300 s: ranks hang")


def test_heartbeat_of_an_earlier_start_says_nothing(watch: Patience) -> None:
    assert watch.complaint(Beat(7, BEGIN - 1, 7), BEGIN + 299) is None
    assert watch.complaint(Beat(7, BEGIN - 1, 7), BEGIN + 300) is not None


def test_checkpoint_that_is_loaded_is_no_step(watch: Patience) -> None:
    assert watch.complaint(Beat(20, BEGIN + 50, 1), BEGIN + 200) is None
    assert watch.complaint(Beat(20, BEGIN + 50, 1), BEGIN + 300) is not None


def test_steps_are_counted_from_the_last_one(watch: Patience) -> None:
    """Whatever was seen before: ranks may do many steps, and hang, between two looks."""
    assert watch.complaint(Beat(21, BEGIN + 90, 2), BEGIN + 99) is None
    complaint = watch.complaint(Beat(21, BEGIN + 90, 2), BEGIN + 100)
    assert complaint is not None
    assert complaint.startswith("no step in 10 s: ranks hang")


def test_rolling_back_to_the_loaded_step_is_a_step(watch: Patience) -> None:
    assert watch.complaint(Beat(20, BEGIN + 400, 3), BEGIN + 409) is None
    assert watch.complaint(Beat(20, BEGIN + 400, 3), BEGIN + 410) is not None


def test_the_file_says_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert heartbeat.last(tmp_path) is None
    for step, number in (10**12, 1), (3, 12):
        before = time.time()
        heartbeat.beat(tmp_path, step, number, 64 * step)
        found = heartbeat.last(tmp_path)
        assert found is not None
        assert (found.step, found.number) == (step, number)
        assert abs(found.time - before) < 60
