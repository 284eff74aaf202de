"""Decisions that follow from events: starting again, progress, discarded steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from damaged import damaged  # noqa: F401

from atom.launch.failure import Failure
from atom.launch.restarts import Restarts
from atom.run_dir import events, heartbeat, metrics, progress

# ---------------------------------------------------------------------------- decisions

RAISED, LOST = Failure("torn", raised=True), Failure("killed")


@pytest.mark.parametrize(
    ("failures", "refused"),
    [
        # Steps done by the ranks that failed (None: they began none), newest checkpoint, what is
        # said of each.
        ([(RAISED, 3, 2), (RAISED, 5, 4)], [None, None]),
        ([(RAISED, 12, 10), (RAISED, 12, 10)], [None, "it failed there before"]),
        ([(RAISED, 12, 10), (RAISED, 11, 10)], [None, None]),
        ([(RAISED, 12, 10), (RAISED, 11, 10), (RAISED, 12, 10)], [None, None, "it failed there"]),
        ([(RAISED, 12, 10), (RAISED, None, 10)], [None, None]),
        ([(RAISED, None, 10), (RAISED, None, 10)], [None, "it failed there before"]),
        ([(RAISED, None, 0)], [""]),
        ([(RAISED, 0, 0)], [""]),
        ([(LOST, 12, 10), (LOST, 12, 10)], [None, None]),
    ],
)
def test_what_makes_another_start_useless(
    failures: list[tuple[Failure, int | None, int]], refused: list[str | None]
) -> None:
    restarts = Restarts(limit=5)
    said = [restarts.refuse(failure, step=step, saved=saved) for failure, step, saved in failures]
    for one, expected in zip(said, refused, strict=True):
        assert one is expected is None or (one is not None and one.startswith(expected or ""))


@pytest.mark.parametrize(
    ("beat", "logged", "expected"),
    [
        # What the heartbeat says, the last row's step, and what a view says.
        ("7 8 1792", 5, (7, 1792)),
        ("5 6 1280", 5, (5, 1280)),
        ("4 5 1024", 5, (5, 1280)),  # killed between the row and the sign of life
        ("7 8", 5, (7, None)),  # of an earlier version
        ("", 5, (5, 1280)),  # half written
        (None, 5, (5, 1280)),
        ("7 8 1792", None, (7, 1792)),
        (None, None, (0, None)),
    ],
)
def test_progress_is_what_was_done(
    tmp_path: Path, beat: str | None, logged: int | None, expected: tuple[int, int | None]
) -> None:
    (tmp_path / "logs").mkdir()
    if beat is not None:
        (tmp_path / heartbeat.FILE_NAME).write_text(beat)
    if logged is not None:
        numbers = {"loss": 1, "grad_norm": 1, "lr": 1, "tokens_per_second": 1, "step_seconds": 1}
        row = {"step": logged, "tokens_seen": logged * 4 * 64, "memory_gib": 1, **numbers}
        (tmp_path / metrics.FILE_NAME).write_text(json.dumps(row) + "\n")
    assert progress.of(tmp_path) == expected


def _event(name: str, **fields: object) -> dict:
    return {"event": name, **fields}


STOP_AT_10 = _event(events.STOPPED, step=10)
BACK = _event(events.NUMERICAL_FAULT, decision="rollback", step=8, done=8, to_step=4)


@pytest.mark.parametrize(
    ("happened", "loaded", "expected"),
    [
        ([STOP_AT_10, _event(events.UNDER_WAY, step=11)], None, 0),
        ([STOP_AT_10], 10, 0),
        # The checkpoint of step 10 was damaged.
        ([STOP_AT_10], 8, 2),
        ([STOP_AT_10, _event(events.UNDER_WAY, step=9)], None, 2),
        ([STOP_AT_10, _event(events.UNDER_WAY, step=9), STOP_AT_10], 10, 2),
        # An earlier version did not say where a run had finished.
        ([_event(events.FINISHED), _event(events.UNDER_WAY, step=9)], None, 0),
        ([_event(events.INTERRUPTED, step=12, from_step=8), BACK], None, 8),
        ([{name: value for name, value in BACK.items() if name != "done"}], None, 3),
        ([{**BACK, "decision": "skip"}], None, 0),
    ],
)
def test_discarded_steps_are_counted(
    happened: list[dict], loaded: int | None, expected: int
) -> None:
    assert progress.discarded(happened, loaded) == expected


def test_the_signal_is_told_once_and_a_late_node_makes_no_finished_run(tmp_path: Path) -> None:
    events.record(tmp_path, events.STARTED, ranks=2, attempt=1)
    for name in ("SIGTERM", "SIGUSR1"):  # of two nodes
        events.ask(tmp_path, name)
    assert events.asked_by(events.read(tmp_path)) == "SIGTERM"
    events.record(tmp_path, events.STOPPED, step=3, tokens_seen=768, reason="SIGTERM")
    assert events.asked_by(events.read(tmp_path)) is None
    events.record(tmp_path, events.STOP_ASKED, signal="SIGUSR1")
    assert events.stopped(tmp_path) == "stopped by SIGTERM after step 3, with a checkpoint"
    events.record(tmp_path, events.STARTED, ranks=2, attempt=1)
    assert events.stopped(tmp_path) is None
