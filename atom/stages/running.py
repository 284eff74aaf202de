"""Run the stages of a recipe, each in a process of the ``atom`` command, in the order of needs."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import IO

from atom.errors import EX_STOPPED, RunError, RunStoppedError, UserError
from atom.io.files import make_folder, opened
from atom.io.process import die_with_parent
from atom.run_dir.status import status
from atom.stages import decided, state
from atom.stages.arguments import arguments
from atom.stages.composed import Composed
from atom.stages.state import Record

OLD = "outdated"
OUTPUT = "output.txt"
"""File with the result of a stage that only prints one."""

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 5.0
"""Seconds between two looks at the folder of a run that a launcher has."""


@dataclass
class _Job:
    """A stage that runs."""

    stage: str
    process: subprocess.Popen[bytes]
    record: Record
    log: IO[bytes]
    result: IO[bytes] | None
    last: bytes = b""
    rest: bytes = b""


class Runner:
    """Run the stages of a recipe.

    Args:
        made: the recipe.
        code: digest of the code.
        jobs: the most stages that run at once.
        tell: shows a line.
        with_code: whether other code makes a stage run again.
    """

    def __init__(
        self,
        made: Composed,
        code: str,
        *,
        jobs: int,
        tell: Callable[[str], None],
        with_code: bool = True,
    ) -> None:
        self._made, self._code, self._jobs = made, code, jobs
        self._tell, self._with_code = tell, with_code
        self._running: dict[str, _Job] = {}
        self._selector = selectors.DefaultSelector()
        self._submitted: dict[str, Record] = {}
        self._looked = 0.0
        self._failed: dict[str, str] = {}
        self._blocked: list[str] = []
        self._asked = 0

    def run(self, stages: Iterable[str], again: Iterable[str] = ()) -> None:
        """Run ``stages`` as far as they have changed, and what is left of them.

        Raises:
            RunError: stages failed; the others, as far as they do not need them, are finished.
            RunStoppedError: a signal stopped the recipe.
        """
        left = [name for name in self._made.stages if name in set(stages)]
        forced = set(again)
        before = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            while left or self._running or (self._submitted and not self._asked):
                self._start(left, forced)
                self._look()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for job in self._running.values():
                job.process.kill()
        if self._asked:
            kept = f" (submitted: {', '.join(self._submitted)})" if self._submitted else ""
            raise RunStoppedError(f"stopped; the same command continues the recipe{kept}")
        if self._failed:
            told = [f"stage {name} failed: {said}" for name, said in self._failed.items()]
            if self._blocked:
                told.append(f"not run: {', '.join(self._blocked)}")
            raise RunError("; ".join(told))

    # ------------------------------------------------------------------------ starts

    def _start(self, left: list[str], forced: set[str]) -> None:
        for name in list(left):
            if self._asked:
                left.clear()
                return
            if len(self._running) + len(self._submitted) >= self._jobs:
                return
            needs = self._made.needs[name]
            if any(need in self._failed or need in self._blocked for need in needs):
                left.remove(name)
                self._blocked.append(name)
                continue
            if any(n in left or n in self._running or n in self._submitted for n in needs):
                continue
            left.remove(name)
            self._begin(name, forced)

    def _begin(self, name: str, forced: set[str]) -> None:
        finished = {need: decided.Decision("finished") for need in self._made.needs[name]}
        try:
            found = decided.decision(
                self._made, name, self._code, finished, with_code=self._with_code, again=forced
            )
            if not found.runs:
                self._tell(f"{name}: finished, nothing has changed")
                return
            if found.state == "submitted" and found.record:
                self._submitted[name] = found.record
                return
            now = decided.made_of(self._made, name, self._code)
            words = arguments(self._made, name)
        except UserError as error:
            self._failed[name] = error.sentence()
            return
        before = found.record if found.state in ("interrupted", "stopped", "failed") else None
        self._make_room(name, keep=before is not None)
        self._tell(f"{name}: atom {' '.join(words)}  ({found.why or found.state})")
        place, log = self._made.place(name), self._made.folder / state.FOLDER / f"{name}.txt"
        make_folder(log.parent)
        result = None
        if self._made.command(name).out is None:
            make_folder(place)
            result = _written(place / OUTPUT, os.O_TRUNC)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "atom", *words],
            stdin=subprocess.DEVNULL,
            stdout=result or subprocess.PIPE,
            stderr=subprocess.PIPE if result else subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the recipe alone, which asks stages to stop
            preexec_fn=_ends_with_parent,
        )
        record = Record(now, "running", time.time(), before.seconds if before else 0.0, "", words)
        state.write(self._made.folder, name, record)
        job = _Job(name, process, record, _written(log, os.O_APPEND), result)
        self._running[name] = job
        pipe = process.stderr if result else process.stdout
        assert pipe is not None
        os.set_blocking(pipe.fileno(), False)
        self._selector.register(pipe, selectors.EVENT_READ, job)

    def _make_room(self, name: str, *, keep: bool) -> None:
        """Move what an earlier declaration has made out of the way, and remove what is partial."""
        place, command = self._made.place(name), self._made.command(name)
        if not place.exists():
            return
        if keep and command.resumes:
            return
        if keep:
            shutil.rmtree(place)
            return
        old = self._made.folder / OLD
        make_folder(old)
        number = 1
        while (target := old / f"{name}-{number}").exists():
            number += 1
        place.rename(target)
        self._tell(f"{name}: what it made before is in {target}")

    # ------------------------------------------------------------------------ progress and ends

    def _look(self) -> None:
        for key, _ in self._selector.select(_POLL_SECONDS) if self._running else ():
            self._read(key.data, key.fileobj)  # type: ignore[arg-type]
        for name, job in list(self._running.items()):
            if job.process.poll() is not None:
                self._end(name, job)
        if self._submitted and not self._running:
            time.sleep(_POLL_SECONDS)
        if self._submitted and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            for name, record in list(self._submitted.items()):
                self._follow(name, record)

    def _read(self, job: _Job, pipe: IO[bytes]) -> None:
        content = os.read(pipe.fileno(), 1 << 16)
        if not content:
            self._selector.unregister(pipe)
            return
        job.log.write(content)
        job.log.flush()
        *lines, job.rest = (job.rest + content).split(b"\n")
        for line in lines:
            job.last = line or job.last
            self._tell(f"{job.stage}: {line.decode(errors='replace')}")

    def _end(self, name: str, job: _Job) -> None:
        pipe = job.process.stderr if job.result else job.process.stdout
        assert pipe is not None
        with suppress(BlockingIOError, KeyError):
            while pipe.fileno() in {key.fd for key in self._selector.get_map().values()}:
                self._read(job, pipe)
        with suppress(KeyError):
            self._selector.unregister(pipe)
        for file in (pipe, job.log, job.result):
            if file is not None:
                file.close()
        del self._running[name]
        code = job.process.returncode
        said = (job.rest or job.last).decode(errors="replace").removeprefix("atom: ")
        if code == 0:
            ended: state.Ended = "finished"
        elif code == EX_STOPPED or self._asked:
            ended = "stopped"
        else:
            ended = "failed"
            self._failed[name] = said or f"exit code {code}"
        if ended == "finished" and self._made.stages[name].command == "train":
            run = status(self._made.place(name)).state
            if run != "finished":
                record = replace(job.record, state="submitted")
                state.write(self._made.folder, name, record)
                self._submitted[name] = record
                self._tell(f"{name}: submitted; the recipe waits for the run")
                return
        self._record(name, job.record, ended, said)

    def _follow(self, name: str, record: Record) -> None:
        """Record the end of a run that a launcher has, if it has ended."""
        try:
            found = status(self._made.place(name))
            state_of_run, reason = found.state, found.reason or found.state
        except UserError as error:
            state_of_run, reason = "failed", error.sentence()
        if state_of_run in ("new", "running"):
            return
        del self._submitted[name]
        if state_of_run == "finished":
            self._record(name, record, "finished", "")
            return
        self._failed[name] = reason
        self._record(name, record, "failed", reason)

    def _record(self, name: str, record: Record, ended: state.Ended, said: str) -> None:
        seconds = record.seconds + time.time() - record.began
        said = "" if ended == "finished" else said
        state.write(
            self._made.folder, name, replace(record, state=ended, seconds=seconds, said=said)
        )
        self._tell(f"{name}: {ended} after {seconds:.0f} s")

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._asked += 1
        how = signal.SIGTERM if self._asked == 1 else signal.SIGKILL
        for job in self._running.values():
            with suppress(ProcessLookupError):
                job.process.send_signal(how)


def _written(path: Path, flags: int) -> IO[bytes]:
    return os.fdopen(opened(path, os.O_WRONLY | os.O_CREAT | flags, below=path.parent), "wb")


def _ends_with_parent() -> None:
    die_with_parent(signal.SIGTERM)


def clean(made: Composed, stages: Iterable[str]) -> list[Path]:
    """Remove outdated folders, and the folders of ``stages``; return what was removed."""
    places = [made.folder / OLD, *(made.place(name) for name in stages)]
    removed = []
    for place in places:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
            removed.append(place)
    for name in stages:
        state.remove(made.folder, name)
    return removed
