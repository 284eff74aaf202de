"""Determine how far a run has come; the screen, status, reports and events all use this module.

Steps count whether logged or not: rank 0 writes each one into the heartbeat. A process that is
killed between a step and its heartbeat may have done one more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from atom.run_dir import events, heartbeat, metrics
from atom.run_dir.metrics import StepMetrics


class Progress(NamedTuple):
    """The last step done, and the tokens of all steps until then (None if unknown)."""

    step: int = 0
    tokens_seen: int | None = None


def of(run: Path, rows: list[StepMetrics] | None = None) -> Progress:
    """Return the progress of the run in a folder.

    Args:
        run: the run folder.
        rows: the rows of its ``metrics.jsonl``, if already read.
    """
    rows = metrics.read(run / metrics.FILE_NAME) if rows is None else rows
    logged = Progress(rows[-1].step, rows[-1].tokens_seen) if rows else Progress()
    beat = heartbeat.last(run)
    # A row is written before the heartbeat of its step; a heartbeat of an earlier version has no
    # tokens.
    if beat is None or beat.step < logged.step or (beat.step == logged.step and rows):
        return logged
    return Progress(beat.step, beat.tokens_seen)


def since(run: Path, begin: float, *, of_their_own: bool = False) -> int | None:
    """Return the last step that ranks trained or loaded; None if they reached none.

    Args:
        run: the run folder.
        begin: when the ranks were started, in seconds since the epoch.
        of_their_own: ignore a step that was only loaded.
    """
    beat = heartbeat.last(run)
    if beat is None or beat.time <= begin or (of_their_own and beat.number == 1):
        return None
    return beat.step


def discarded(happened: list[dict[str, Any]], loaded: int | None = None) -> int:
    """Return how many steps were repeated or rolled back.

    Args:
        happened: the events of a run.
        loaded: the step that its ranks have just loaded, if they have trained none yet.
    """
    steps, ended = 0, None
    for event in happened:
        if event["event"] in (events.STOPPED, events.FINISHED):
            ended = event.get("step")
        elif event["event"] == events.UNDER_WAY:
            # The last checkpoint was damaged, or weights-only.
            steps += max((ended or 0) - (event["step"] - 1), 0)
            ended = None
        elif event["event"] == events.INTERRUPTED:
            steps += max(event["step"] - event["from_step"], 0)
        elif event["event"] == events.NUMERICAL_FAULT and event["decision"] == "rollback":
            # An earlier version did not write this field, and detected every fault immediately.
            steps += event.get("done", event["step"] - 1) - event["to_step"]
    return steps + (0 if loaded is None else max((ended or 0) - loaded, 0))


def finish(run: Path) -> None:
    """Record that a run has done its last step."""
    step, tokens_seen = of(run)
    events.record(run, events.FINISHED, step=step, tokens_seen=tokens_seen)
