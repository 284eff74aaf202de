"""Measure the cost of an interruption: the time until the run is back where it was."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import torch.distributed as dist

from atom.run_dir import events, heartbeat, logs
from atom.titan.train.callback import Callback

_ENDS = (events.STARTED, events.STOPPED, events.FAILED, events.FINISHED)


class Recovery(Callback):
    """A callback that writes the heartbeat and measures recovery, on rank 0."""

    name = "recovery"

    def on_built(self) -> None:
        self._begun = False
        self._interruption = Interruption(self.trainer.run) if dist.get_rank() == 0 else None

    def still_starting(self) -> None:
        if self._interruption is not None:
            self._interruption.alive()

    def between_steps(self) -> None:
        self._tell(self.trainer.step)

    def on_gone_back(self, step: int) -> None:
        if self._begun:
            self._tell(step)
        self._begun = True  # the first call is the start, already reported between steps

    def _tell(self, step: int) -> None:
        if self._interruption is not None:
            self._interruption.between_steps(step, self.trainer.tokens_seen())


class Interruption:
    """The time lost by an interruption: from its event until the run has caught up. For rank 0.

    The loss is measured from the end of the earlier process's last step until that step is done
    again. It covers detection of the failure, start of the ranks, loading, and repeated steps. A
    process that ends before it catches up leaves the measurement open for the next one.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._beats = 0
        self._begun = False
        self._before = heartbeat.last(run)
        self._open: dict[str, Any] | None = None

    def alive(self) -> None:
        """Write the heartbeat of a process that works, and has not begun to train."""
        before = self._before
        self._beats += 1
        step, tokens = (before.step, before.tokens_seen) if before is not None else (0, 0)
        heartbeat.beat(self._run, step, self._beats, tokens or 0)

    def between_steps(self, step: int, tokens_seen: int) -> None:
        """Record that ``step`` is done or loaded, with the tokens so far; write the heartbeat."""
        if not self._begun:
            self._begun = True
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
        before = self._before
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
    """Return the event that ended the previous process, or its start if it ended without an event.

    None if it stopped on request, or if there was none.
    """
    ends = [event for event in happened if event["event"] in _ENDS]
    before = ends[-2] if len(ends) > 1 else None  # the last one is this process's start
    return before if before and before["event"] in (events.STARTED, events.FAILED) else None
