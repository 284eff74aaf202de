"""Evaluate checkpoints while training goes on, each by an ``atom eval`` at low priority.

An evaluation that fails is told, and never fails the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io.files import appending, open_regular
from atom.io.tail import Tail
from atom.io.terminal import say
from atom.launch.announcements import told
from atom.recipe.evaluation import Evaluation
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.run_dir import evals, events
from atom.run_dir.evaluators import Evaluators

LOG = "evaluation.log"
_SECONDS = 0.5
_LAST_BYTES = 4096


def check(run: Run, host: Host, *, joined: bool) -> None:
    """Refuse tasks that no installed evaluator has; without torch.

    Args:
        run: the composed run.
        host: the plugins.
        joined: whether an external launcher has started the ranks, so that nobody would start
            evaluations.

    Raises:
        UserError: with a key of the section.
    """
    if not run.evaluation.interval:
        return
    if joined:
        raise UserError(
            "is for ranks that ATOM starts",
            valid="0, and `atom eval` afterwards",
            key="evaluation.interval",
            value=run.evaluation.interval,
        )
    try:
        Evaluators(host, run, {}).find(run.evaluation.tasks)
    except UserError as error:
        if error.key == "--tasks":
            error.key = "evaluation.tasks"
        raise


class Evaluations:
    """The evaluations of a run, one at a time, in the order of steps.

    Args:
        place: the run folder.
        settings: the run's section.
        last: the last step of the run.
    """

    def __init__(self, place: Path, settings: Evaluation, last: int) -> None:
        self._place, self._settings, self._last = place, settings, last
        self._waiting: deque[int] = deque()
        self._job: subprocess.Popen[bytes] | None = None
        self._step = 0
        self._began = 0.0
        self._recorded: list[dict[str, Any]] = []
        self._tail = Tail(place / events.FILE_NAME)
        self._tail.lines()

    def poll(self) -> bool:
        """Start what is due, and record what has ended; return whether anything is left."""
        for line in self._tail.lines():
            with suppress(ValueError):  # the reader of the whole file reports it
                event = events.parsed(line)
                saved = event["event"] == events.CHECKPOINT_SAVED
                if saved and self._settings.is_due(event["step"], self._last):
                    self._waiting.append(event["step"])
        if self._job is not None and self._job.poll() is not None:
            self._ended(self._job.returncode)
            self._job = None
        if self._job is None and self._waiting:
            self._start(self._waiting.popleft())
        return self._job is not None or bool(self._waiting)

    def finish(self) -> None:
        """Wait until all checkpoints are evaluated."""
        self._recorded.clear()  # the screen has shown them
        if self.poll():
            say("evaluating the last checkpoints; Ctrl-C ends this")
        while self.poll():
            time.sleep(_SECONDS)
        for event in self._recorded:
            say(told(event) or "")

    def close(self) -> None:
        """End an evaluation that is under way; those that wait are not done."""
        steps = [*([self._step] if self._job is not None else []), *self._waiting]
        if self._job is not None:
            self._job.terminate()
            try:
                self._job.wait(10)
            except subprocess.TimeoutExpired:
                self._job.kill()
                self._job.wait()
        self._job = None
        self._waiting.clear()
        for step in steps:
            self._failed(step, "the run has ended before")
        self._tail.close()

    def _start(self, step: int) -> None:
        self._step, self._began = step, time.monotonic()
        settings = self._settings
        command = [sys.executable, "-P", "-m", "atom", "eval", str(self._place.absolute())]
        command += ["--tasks", ",".join(settings.tasks), "--step", str(step)]
        command += ["--device", settings.device]
        if settings.limit is not None:
            command += ["--limit", str(settings.limit)]
        log = appending(self._place / "logs" / LOG)
        try:
            self._job = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        except OSError as error:
            self._failed(step, f"it could not be started: {error.strerror}")
            return
        finally:
            os.close(log)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._job.pid, 19)

    def _ended(self, code: int) -> None:
        if code:
            self._failed(self._step, self._reason(code))
            return
        found = [each for each in evals.read(self._place) if each.step == self._step]
        numbers = {name: each[-1].value for name, each in evals.by_name(found).items()}
        seconds = round(time.monotonic() - self._began, 3)
        self._record(events.EVALUATED, step=self._step, seconds=seconds, numbers=numbers)

    def _failed(self, step: int, reason: str) -> None:
        self._record(events.EVALUATION_FAILED, step=step, reason=reason)

    def _record(self, event: str, **fields: Any) -> None:
        events.record(self._place, event, **fields)
        self._recorded.append({"event": event} | fields)

    def _reason(self, code: int) -> str:
        """Return the last line of the log, where the command tells why it failed."""
        path = self._place / "logs" / LOG
        with suppress(OSError), open_regular(path) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
            for line in reversed(lines):
                if line.startswith("atom: "):
                    return line.removeprefix("atom: ")[:500]
        return f"it ended with exit code {code}; see logs/{LOG}"
