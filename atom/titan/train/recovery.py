"""Measure what an interruption costs: the time until a run is again where it was."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist

from atom.run_dir import events, heartbeat, logs
from atom.titan.train.callback import Callback

_ENDS = (events.STARTED, events.STOPPED, events.FAILED, events.FINISHED)


class Recovery(Callback):
    """Shows, between two steps, that the run is alive and how far it is; rank 0 does."""

    name = "recovery"

    def on_built(self) -> None:
        self._begun = False
        self._interruption = Interruption(self.trainer.run) if dist.get_rank() == 0 else None

    def between_steps(self) -> None:
        self._tell(self.trainer.step)

    def on_gone_back(self, step: int) -> None:
        if self._begun:
            self._tell(step)
        self._begun = True  # the first time is the start, which was told between steps

    def _tell(self, step: int) -> None:
        if self._interruption is not None:
            self._interruption.between_steps(step, self.trainer.tokens_seen())


class Interruption:
    """Notes that a run goes on behind where it was, and when it has caught up. For rank 0.

    Time is lost from the end of the last step that an earlier process did until that step is done
    again: finding the failure out, starting ranks, loading, and the steps since the checkpoint. A
    process that ends before it has caught up leaves the count open for the next.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._beats = 0
        self._open: dict[str, Any] | None = None

    def between_steps(self, step: int, tokens_seen: int) -> None:
        """Note that ``step`` is done, or loaded, with the tokens until then, and that the process
        lives."""
        if not self._beats:
            self._begin(step)
        self._beats += 1
        heartbeat.beat(self._run, step, self._beats, tokens_seen)
        if self._open is None or step < self._open["reached"]:
            return
        begin = datetime.fromisoformat(self._open["since"])
        seconds = datetime.now(begin.tzinfo) - begin
        told = {name: self._open[name] for name in ("cause", "rank", "failed_host")}
        events.record(
            self._run,
            events.RECOVERED,
            step=step,
            seconds=round(seconds.total_seconds(), 3),
            **told,
        )
        self._open = None

    def _begin(self, step: int) -> None:
        happened = events.read(self._run)
        before = heartbeat.last(self._run)
        ended = _ended(happened)
        if before is None or ended is None:
            return
        earlier, done = unfinished(happened), before.step
        reached, since = done, logs.stamp(before.time)
        if earlier is not None:
            reached, since = max(done, earlier["reached"]), earlier["since"]
        self._open = {
            "step": done,
            "from_step": step,
            "reached": reached,
            "since": since,
            "cause": ended.get("reason", "killed, or its machine was lost"),
            "rank": ended.get("rank"),
            "failed_host": ended["host"],
        }
        events.record(self._run, events.INTERRUPTED, **self._open)


def unfinished(happened: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the last event of a run that has not caught up, or None if it has."""
    for event in reversed(happened):
        if event["event"] == events.RECOVERED:
            return None
        if event["event"] == events.INTERRUPTED:
            return event
    return None


def _ended(happened: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the event that ended the process before this one, or the start of one that ended
    without a word; None if it ended as it was asked to, or if there was none."""
    ends = [event for event in happened if event["event"] in _ENDS]
    before = ends[-2] if len(ends) > 1 else None  # the last is this process's own start
    return before if before and before["event"] in (events.STARTED, events.FAILED) else None
