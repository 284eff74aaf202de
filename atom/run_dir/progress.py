"""How far a run has come: the one place that the screen, status, reports and events ask.

Steps count that were done, logged or not: rank 0 writes each into the heartbeat. A process that is
killed between a step and that may have done one more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from atom.run_dir import events, heartbeat, metrics
from atom.run_dir.metrics import StepMetrics


class Progress(NamedTuple):
    """The last step that was done, and the tokens of all steps until then (None if not known)."""

    step: int = 0
    tokens_seen: int | None = None


def of(run: Path, rows: list[StepMetrics] | None = None) -> Progress:
    """Return how far the run in a folder has come.

    Args:
        run: the folder.
        rows: of its ``metrics.jsonl``, if they have been read.
    """
    rows = metrics.read(run / metrics.FILE_NAME) if rows is None else rows
    logged = Progress(rows[-1].step, rows[-1].tokens_seen) if rows else Progress()
    beat = heartbeat.last(run)
    # A row is written before the heartbeat of its step; an earlier version's has no tokens.
    if beat is None or beat.step < logged.step or (beat.step == logged.step and rows):
        return logged
    return Progress(beat.step, beat.tokens_seen)


def since(run: Path, begin: float, *, of_their_own: bool = False) -> int | None:
    """Return the last step that ranks did or loaded that were started at ``begin``, in seconds
    since the epoch; None if they came to none.

    Args:
        run: the folder.
        begin: when.
        of_their_own: leave out a step that they have only loaded.
    """
    beat = heartbeat.last(run)
    if beat is None or beat.time <= begin or (of_their_own and beat.number == 1):
        return None
    return beat.step


def discarded(happened: list[dict[str, Any]], loaded: int | None = None) -> int:
    """Return how many steps were done and then done again, or rolled back.

    Args:
        happened: the events of a run.
        loaded: the step that its ranks have just loaded, if they have done none yet.
    """
    steps, ended = 0, None
    for event in happened:
        if event["event"] in (events.STOPPED, events.FINISHED):
            ended = event.get("step")
        elif event["event"] == events.UNDER_WAY:
            # The last checkpoint was damaged, or held the model alone.
            steps += max((ended or 0) - (event["step"] - 1), 0)
            ended = None
        elif event["event"] == events.INTERRUPTED:
            steps += max(event["step"] - event["from_step"], 0)
        elif event["event"] == events.NUMERICAL_FAULT and event["decision"] == "rollback":
            # An earlier version wrote no such field, and found all faults at once.
            steps += event.get("done", event["step"] - 1) - event["to_step"]
    return steps + (0 if loaded is None else max((ended or 0) - loaded, 0))


def finish(run: Path) -> None:
    """Record that a run has done its last step."""
    step, tokens_seen = of(run)
    events.record(run, events.FINISHED, step=step, tokens_seen=tokens_seen)
