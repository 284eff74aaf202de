"""Evaluate checkpoints while training goes on, each by a job of its own.

The job is an ``atom eval`` at low priority beside the process that watches the run; or, if the
launcher has a scheduler, a job there. An evaluation that fails is told, and never fails the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io.environment import no_rank
from atom.io.files import appending, open_regular
from atom.io.tail import Tail
from atom.io.terminal import say
from atom.launch import late_evaluations
from atom.launch.announcements import told
from atom.recipe.evaluation import Evaluation
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.run_dir import evals, events
from atom.run_dir.evaluators import Evaluators

LOG = "evaluation.log"
_SECONDS = 0.5
_SUBMIT_SECONDS = 120
_LAST_BYTES = 4096


def check(run: Run, host: Host) -> None:
    """Refuse tasks that no installed evaluator has; without torch.

    Args:
        run: the composed run.
        host: the plugins.

    Raises:
        UserError: with a key of the section.
    """
    if not run.evaluation.interval:
        return
    try:
        Evaluators(host, run, {}).find(run.evaluation.tasks)
    except UserError as error:
        if error.key == "--tasks":
            error.key = "evaluation.tasks"
        raise


class Job:
    """An ``atom eval`` of a checkpoint, in a process of its own at low priority.

    Args:
        place: the run folder.
        settings: the run's section.
        step: the step of the checkpoint.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, place: Path, settings: Evaluation, step: int) -> None:
        self.step = step
        self._place, self._began = place, time.monotonic()
        command = [sys.executable, "-P", "-m", "atom", "eval", str(place.absolute())]
        command += ["--tasks", ",".join(settings.tasks), "--step", str(step)]
        command += ["--device", settings.device]
        if settings.limit is not None:
            command += ["--limit", str(settings.limit)]
        if settings.layout is not None:
            command += ["--layout", settings.layout]
        log = appending(place / "logs" / LOG)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=no_rank(os.environ),
            )
        finally:
            os.close(log)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)

    def outcome(self) -> dict[str, Any] | None:
        """Return the event of its end; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code:
            return _failed(self.step, self._reason(code))
        found = [each for each in evals.read(self._place) if each.step == self.step]
        numbers = {name: each[-1].value for name, each in evals.by_name(found).items()}
        seconds = round(time.monotonic() - self._began, 3)
        return {
            "event": events.EVALUATED,
            "step": self.step,
            "seconds": seconds,
            "numbers": numbers,
        }

    def end(self) -> None:
        """End it before it is done."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

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


class Evaluations:
    """The evaluations of a run, in the order of steps: one process at a time, or jobs of a
    scheduler.

    Args:
        place: the run folder.
        settings: the run's section.
        last: the last step of the run.
        submit: the command that submits an evaluation to a scheduler, to which the run folder and
            the step are appended; None to evaluate in a process.
    """

    def __init__(
        self,
        place: Path,
        settings: Evaluation,
        last: int,
        submit: Sequence[str] | None = None,
    ) -> None:
        self._place, self._settings, self._last = place, settings, last
        self._submit = submit
        self._waiting: deque[int] = deque()
        self._job: Job | None = None
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
        if self._job is not None and (ended := self._job.outcome()) is not None:
            self._record(ended)
            self._job = None
        while self._job is None and self._waiting:
            self._start(self._waiting.popleft())
        return self._job is not None or bool(self._waiting)

    def finish(self) -> None:
        """Wait until all checkpoints are evaluated, or submitted."""
        self._recorded.clear()  # the screen has shown them
        if self.poll():
            say("evaluating the last checkpoints; Ctrl-C ends this")
        while self.poll():
            time.sleep(_SECONDS)
        for event in self._recorded:
            say(told(event) or "")
        if self._submit is None:
            late_evaluations.track(self._place)

    def close(self) -> None:
        """End an evaluation that is under way; those that wait are not done."""
        if self._submit is not None:
            self.poll()
        steps = [*([self._job.step] if self._job is not None else []), *self._waiting]
        if self._job is not None:
            self._job.end()
        self._job = None
        self._waiting.clear()
        for step in steps:
            self._record(_failed(step, "the run has ended before"))
        self._tail.close()

    def _start(self, step: int) -> None:
        if self._submit is not None:
            self._record(self._submitted([*self._submit, str(self._place.absolute()), str(step)]))
            return
        try:
            self._job = Job(self._place, self._settings, step)
        except OSError as error:
            self._record(_failed(step, f"it could not be started: {error.strerror}"))

    def _submitted(self, command: Sequence[str]) -> dict[str, Any]:
        """Submit an evaluation; return the event."""
        step = int(command[-1])
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_SUBMIT_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return _failed(step, f"it could not be submitted: {error}")
        if done.returncode:
            said = " ".join(done.stderr.split())[-500:] or f"exit code {done.returncode}"
            return _failed(step, f"it could not be submitted: {said}")
        return {
            "event": events.EVALUATION_SUBMITTED,
            "step": step,
            "job": " ".join(done.stdout.split())[:500],
        }

    def _record(self, event: dict[str, Any]) -> None:
        record(self._place, event)
        self._recorded.append(event)


@contextmanager
def in_background(place: Path, settings: Evaluation, last: int) -> Iterator[None]:
    """Evaluate checkpoints from a thread of a rank, which trains in the context.

    After training, the context waits until all checkpoints are evaluated.
    """
    if not settings.interval:
        yield
        return
    scored = Evaluations(place, settings, last)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS):
            scored.poll()

    thread = threading.Thread(target=watch, name="atom-evaluations", daemon=True)
    thread.start()
    try:
        yield
        ended.set()
        thread.join()
        scored.finish()
    finally:
        ended.set()
        thread.join()
        scored.close()


def record(place: Path, event: Mapping[str, Any]) -> None:
    """Record an event of an evaluation."""
    fields = dict(event)
    events.record(place, fields.pop("event"), **fields)


def _failed(step: int, reason: str) -> dict[str, Any]:
    return {"event": events.EVALUATION_FAILED, "step": step, "reason": reason}
