"""Ranks that hang are told from ranks that start, or work."""

from __future__ import annotations

import pytest

from atom.launch.patience import Patience
from atom.run import Launch

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
    assert watch.complaint((7, BEGIN - 1), BEGIN + 299) is None
    assert watch.complaint((7, BEGIN - 1), BEGIN + 300) is not None


def test_checkpoint_that_is_loaded_is_no_step(watch: Patience) -> None:
    assert watch.complaint((20, BEGIN + 50), BEGIN + 200) is None
    assert watch.complaint((20, BEGIN + 50), BEGIN + 300) is not None


def test_steps_are_counted_from_the_last_one(watch: Patience) -> None:
    assert watch.complaint((20, BEGIN + 50), BEGIN + 51) is None
    assert watch.complaint((21, BEGIN + 90), BEGIN + 99) is None
    complaint = watch.complaint((21, BEGIN + 90), BEGIN + 100)
    assert complaint is not None
    assert complaint.startswith("no step in 10 s: ranks hang")


def test_rolling_back_to_the_loaded_step_is_a_step(watch: Patience) -> None:
    for step, at in ((20, 50), (21, 60), (20, 400)):
        assert watch.complaint((step, BEGIN + at), BEGIN + at + 9) is None
    assert watch.complaint((20, BEGIN + 400), BEGIN + 410) is not None
