"""Run the parts of a measurement one after the other, each within a share of the time.

Each part is a process. A part that fails, or that is stopped at its limit, does not end the others.
The summary is written again after each part, so an early end loses no earlier result. This module
imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEAST = 3.0
"""A part with less than this many seconds is not started."""

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""

LOG, SUMMARY = "log.txt", "summary.md"

PASSED, FAILED, STOPPED, NOT_RUN = "passed", "failed", "stopped", "not run"


@dataclass(frozen=True)
class Part:
    """A part of the measurement.

    Attributes:
        name: of the part.
        what: it measures, in a sentence.
        share: of the time that is left, against the shares of the parts after it that can be run.
        command: of the seconds that the part has.
        refusal: why the part cannot be run here, or None.
        files: that it writes into the folder of results.
        told: the lines of the summary, of the folder.
    """

    name: str
    what: str
    share: float
    command: Callable[[float], list[str]]
    refusal: Callable[[], str | None] = lambda: None
    files: tuple[str, ...] = ()
    told: Callable[[Path], Iterable[str]] = lambda _folder: ()


@dataclass(frozen=True)
class Result:
    """The status of a part, the reason if it is not ``passed``, and its seconds."""

    part: Part
    status: str
    reason: str = ""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether the part passed, or this machine cannot run it."""
        return self.status == PASSED or (self.status == NOT_RUN and bool(self.part.refusal()))


class StoppedError(Exception):
    """The whole measurement was asked to stop."""


def run(
    parts: Sequence[Part], folder: Path, until: float, heading: Callable[[], Sequence[str]]
) -> list[Result]:
    """Run the parts in order, write the summary after each, and return their results.

    Args:
        parts: to run.
        folder: of results. What parts print is appended to its log.
        until: the time of :func:`time.monotonic` at which everything is over.
        heading: the first lines of the summary.
    """
    results: list[Result] = []
    with _AskedToStop():
        reason = ""
        for n, part in enumerate(parts):
            try:
                rest = sum(other.share for other in parts[n:] if not other.refusal())
                result = _run(part, folder, until, rest, reason)
            except StoppedError:
                reason = "the measurement was stopped"
                result = Result(part, STOPPED, reason)
            results.append(result)
            with suppress(StoppedError):
                _write(folder, results, parts[n + 1 :], heading())
            print(f"{part.name}: {_words(result)}", flush=True)
            if result.status == FAILED:
                print(_last_words(folder), flush=True)
    return results


def _run(part: Part, folder: Path, until: float, rest: float, stopped: str) -> Result:
    left = until - time.monotonic()
    if reason := stopped or part.refusal():
        return Result(part, NOT_RUN, reason)
    limit = left * part.share / rest
    if limit < LEAST:
        return Result(part, NOT_RUN, f"{max(left, 0):.0f} s were left")
    began = time.monotonic()
    code = _process(part.command(limit), folder / LOG, limit)
    seconds = time.monotonic() - began
    if code is None:
        return Result(part, STOPPED, f"at its limit of {limit:.0f} s", seconds)
    if code:
        return Result(part, FAILED, f"exit code {code}", seconds)
    return Result(part, PASSED, seconds=seconds)


def _process(command: list[str], log: Path, limit: float) -> int | None:
    """Return the exit code of a command, or None if it was stopped at its limit."""
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)}\n".encode())
        output.flush()
        # A session of its own, so that what it starts can be ended with it.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(max(limit - GRACE, limit / 2))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


class _AskedToStop:
    """SIGTERM and Ctrl-C raise :class:`StoppedError`, so that the summary is still written."""

    _numbers = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self) -> None:
        self._before = {number: signal.signal(number, self._stop) for number in self._numbers}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @staticmethod
    def _stop(*_: object) -> None:
        raise StoppedError


# ---------------------------------------------------------------------------- the summary


def _write(
    folder: Path, results: Sequence[Result], rest: Sequence[Part], heading: Sequence[str]
) -> None:
    lines = [*heading, "", "| part | | seconds | files |", "| --- | --- | ---: | --- |"]
    for result in results:
        there = [name for name in result.part.files if (folder / name).is_file()]
        files = ", ".join(f"`{name}`" for name in there) or "-"
        taken = f"{result.seconds:.0f}" if result.seconds else "-"
        lines.append(f"| {result.part.name} | {_words(result)} | {taken} | {files} |")
    lines += [f"| {part.name} | not run yet | - | - |" for part in rest]
    for result in results:
        lines += ["", f"## {result.part.name}", "", f"{result.part.what} {_ending(result)}".strip()]
        if result.status != NOT_RUN:
            lines += ["", *_told(result.part, folder)]
    place = folder / SUMMARY
    unfinished = place.with_suffix(".part")
    unfinished.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    unfinished.replace(place)


def _words(result: Result) -> str:
    status = result.status if result.status == PASSED else f"**{result.status}**"
    return f"{status}: {result.reason}" if result.reason else status


def _ending(result: Result) -> str:
    if result.status == NOT_RUN:
        return f"**Not run: {result.reason}.**"
    if result.status == STOPPED:
        return f"**Stopped {result.reason}: what follows is what there was until then.**"
    if result.status == FAILED:
        return f"**Failed with {result.reason}**; `{LOG}` has its words."
    return ""


def _told(part: Part, folder: Path) -> Iterator[str]:
    try:
        yield from part.told(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"Its results cannot be read: {type(error).__name__}: {error}."


def read(place: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing if it is not there."""
    if not place.is_file():
        return {}
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return found


def read_log(folder: Path) -> list[str]:
    """Return the lines that all parts have printed so far."""
    return (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()


def _last_words(folder: Path, lines: int = 15) -> str:
    return "\n".join(f"  {line[:200]}" for line in read_log(folder)[-lines:])
