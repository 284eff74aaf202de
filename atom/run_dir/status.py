"""Determine the status of a run from its folder alone."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from atom.errors import UserError
from atom.io import strangers
from atom.io.files import modified
from atom.recipe import batches
from atom.recipe.run import Run, read
from atom.run_dir import checkpoint, claim, events, heartbeat, metrics, progress
from atom.run_dir.folder import RUN_FILE

State = Literal["new", "running", "finished", "stopped", "failed", "interrupted"]

_RECENT = 20


@dataclass(frozen=True)
class Status:
    """The state of a run; times are in seconds, None if unknown.

    Attributes:
        state: ``running`` while a job holds the folder; ``interrupted`` if the last job ended
            without recording it (killed, or its machine was lost).
        reason: why it failed or stopped.
        step: the last step done, logged or not; for an interrupted run a lower bound.
        tokens_seen: tokens until then, over all ranks.
        steps: the last step of the run.
        loss: loss of the last logged step, ``loss_step``.
        step_seconds, tokens_per_second: averages over the last logged steps.
        restarts: number of restarts after a failure.
        steps_lost: steps that were repeated or rolled back.
        lost: time from each interruption until the run reached the same step again.
        productive: time spent on the steps that count.
        wall: time from the first start until now, or until the last heartbeat.
        goodput: ``productive / wall``.
        checkpoint: the newest step to resume from.
        left: estimated time until the last step, at the recent pace.
        started: when ranks were first started, ISO 8601 in UTC.
        evaluation: the last evaluation while training, in words.
    """

    state: State
    reason: str | None
    step: int
    steps: int | None
    tokens_seen: int | None
    loss: float | None
    loss_step: int | None
    step_seconds: float | None
    tokens_per_second: float | None
    restarts: int
    steps_lost: int
    lost: float
    productive: float
    wall: float | None
    goodput: float | None
    checkpoint: int | None
    left: float | None
    pid: int | None
    host: str | None
    started: str | None
    evaluation: str | None = None


def status(run: Path) -> Status:
    """Return the status of the run in a folder.

    Raises:
        UserError: the folder holds no run, or a file in it is unreadable.
    """
    if not os.path.lexists(run / RUN_FILE):
        raise UserError(f"{run} holds no run", valid=f"a folder with a {RUN_FILE}")
    strangers.check(run)
    declared = read(run / RUN_FILE)
    steps = declared.training.steps
    happened = events.read(run)
    rows = metrics.read(run / metrics.FILE_NAME)
    at_work = claim.holder(run)
    state, reason = _state(happened, at_work is not None)
    places = run / checkpoint.FOLDER
    if state == "interrupted" and steps and checkpoint.last_whole(places) >= steps:
        state = "finished"  # its launcher was killed before it could record the end
    recent = rows[-_RECENT:]
    pace = statistics.median(row.step_seconds for row in recent) if recent else None
    step, tokens_seen = progress.of(run, rows)
    productive = _productive(rows, step, pace)
    wall = _wall(run, happened, at_work is not None)
    saved = checkpoint.resumable(places)
    return Status(
        state=state,
        reason=reason,
        step=step,
        steps=steps,
        tokens_seen=tokens_seen,
        loss=rows[-1].loss if rows else None,
        loss_step=rows[-1].step if rows else None,
        step_seconds=pace,
        tokens_per_second=statistics.median(r.tokens_per_second for r in recent)
        if recent
        else None,
        restarts=sum(event["event"] == events.FAILED and event["restart"] for event in happened),
        steps_lost=progress.discarded(happened),
        lost=sum(event["seconds"] for event in happened if event["event"] == events.RECOVERED),
        productive=productive,
        wall=wall,
        goodput=min(productive / wall, 1.0) if wall else None,
        checkpoint=saved[0] if saved else None,
        left=_left(declared, step, pace) if pace and steps and state == "running" else None,
        pid=at_work.get("pid") if at_work else None,
        host=at_work.get("host") if at_work else None,
        started=_started(happened),
        evaluation=_evaluation(happened),
    )


def _state(happened: list[dict], at_work: bool) -> tuple[State, str | None]:
    if at_work:
        return "running", None
    ends: dict[str, State] = {
        events.FINISHED: "finished",
        events.STOPPED: "stopped",
        events.FAILED: "failed",
    }
    for event in reversed(happened):
        if event["event"] in ends:
            return ends[event["event"]], event.get("reason")
        if event["event"] == events.STARTED:
            return "interrupted", None
    return "new", None


def _wall(run: Path, happened: list[dict], at_work: bool) -> float | None:
    begin = _started(happened)
    if begin is None:
        return None
    finished = next((e["time"] for e in reversed(happened) if e["event"] == events.FINISHED), None)
    if finished is not None and not at_work and _state(happened, at_work)[0] == "finished":
        # Checkpoints may be evaluated after it.
        return _seconds(finished) - _seconds(begin)
    signs = [run / metrics.FILE_NAME, run / events.FILE_NAME, run / heartbeat.FILE_NAME]
    last = max((at for sign in signs if (at := modified(sign)) is not None), default=time.time())
    return (time.time() if at_work else last) - _seconds(begin)


def _seconds(when: str) -> float:
    return datetime.fromisoformat(when).timestamp()


def _evaluation(happened: list[dict]) -> str | None:
    """Return the last evaluation while training, in words."""
    for event in reversed(happened):
        if event["event"] == events.EVALUATED:
            return f"step {event['step']:,}"
        if event["event"] == events.EVALUATION_FAILED:
            return f"step {event['step']:,} failed: {event['reason']}"
    return None


def _started(happened: list[dict]) -> str | None:
    return next((e["time"] for e in happened if e["event"] == events.STARTED), None)


def _productive(rows: list[metrics.StepMetrics], step: int, pace: float | None) -> float:
    """Return the seconds of all steps until ``step``.

    A row covers the steps since the previous row; ``pace`` estimates those since the last row."""
    before = [0, *(row.step for row in rows)]
    logged = sum(
        row.step_seconds * (row.step - last) for last, row in zip(before, rows, strict=False)
    )
    return logged + (pace or 0.0) * max(step - before[-1], 0)


def _left(run: Run, step: int, pace: float) -> float:
    """Return the seconds from ``step``, which takes ``pace`` seconds, to the last one."""
    of = batches.batches(run, run.resolved.global_batch_size if run.resolved else 1)
    missing = of.sequences(run.training.steps) - of.sequences(step)
    return pace * missing / of.size(step)
