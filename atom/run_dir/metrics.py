"""``metrics.jsonl``: what a run measured, one JSON object a logged step. A stable interface.

One process at a time writes the file; any number may read it while it grows. ``docs/metrics.md``
describes it to the people and programs that read it without ATOM.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import (
    append,
    appending,
    is_full,
    is_regular,
    open_regular,
    read_bytes,
    whole_lines,
    write_bytes,
)
from atom.io.json_data import dumps
from atom.io.tail import Tail

FILE_NAME = "metrics.jsonl"
"""The file's name in a run's folder."""

POLL_SECONDS = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One row. Floats that are not finite are ``null`` in JSON, and NaN once read back."""

    step: int
    """Number of the optimizer step, counted from 1 since the run began."""

    loss: float
    """Mean cross-entropy per token over the global batch, in nats."""

    grad_norm: float
    """L2 norm of the gradient of all parameters, before it is clipped."""

    lr: float
    """Learning rate of this step."""

    tokens_seen: int
    """Tokens trained on since the run began, over all ranks."""

    tokens_per_second: float
    """Tokens trained on per second, over all ranks, since the row before."""

    step_seconds: float
    """Wall-clock seconds per step, on average since the row before."""

    memory_gib: float
    """Peak memory of the rank that writes, in GiB (2**30 bytes): device memory on a GPU, resident
    set on a CPU."""

    mfu: float | None = None
    """Model FLOPS utilization, as a fraction of the devices' peak: 0 to 1. None, and left out of
    the JSON, where the peak is not known."""

    def to_json(self) -> str:
        """Return the row as one line of JSON, without the newline."""
        values = dataclasses.asdict(self)
        if self.mfu is None:
            del values["mfu"]
        return dumps(values)

    @classmethod
    def from_json(cls, line: str | bytes) -> StepMetrics:
        """Return the row that ``line`` holds; keys that later versions added are passed over.

        Raises:
            ValueError: ``line`` is not a row.
        """
        values = json_data.loads(line.encode() if isinstance(line, str) else line)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        row: dict[str, float] = {}
        for field in dataclasses.fields(cls):
            if field.name in values:
                row[field.name] = _number(field, values[field.name])
            elif field.default is dataclasses.MISSING:
                raise ValueError(f"{field.name} is missing")
        return cls(**row)  # type: ignore[arg-type]  # _number has seen to the types


class MetricsWriter:
    """Appends rows to ``path``, which then holds each step once, ascending, however often the run
    was interrupted and resumed from an earlier step.

    Args:
        path: the file. It is opened, and repaired where needed, by the first :meth:`append`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = b""
        self._descriptor: int | None = None
        self._last_step: int | None = None

    def append(self, metrics: StepMetrics) -> None:
        """Write one row, whole.

        Where steps from ``metrics.step`` on were written before (by a process that went further
        than the checkpoint that this one resumed from), those rows are moved first to
        ``metrics.rolled_back.jsonl``.

        On a full disk it waits for the next, as a run outlives that; only :meth:`close` insists.

        Raises:
            OSError: the row could not be written.
        """
        if self._last_step is None or metrics.step <= self._last_step:
            self.close()
            _roll_back(self._path, metrics.step)
            self._descriptor = appending(self._path)
        self._waiting += f"{metrics.to_json()}\n".encode()
        try:
            self._write()
        except OSError as error:
            if not is_full(error):
                raise
        self._last_step = metrics.step

    def go_back(self, step: int) -> None:
        """Move the rows of later steps than ``step`` to ``metrics.rolled_back.jsonl``: they are to
        be done again."""
        self.close()
        _roll_back(self._path, step + 1)

    def close(self) -> None:
        """Close the file. A later :meth:`append` opens it again.

        Raises:
            OSError: rows wait that could not be written.
        """
        descriptor, self._last_step = self._descriptor, None
        if descriptor is not None:
            try:
                self._write()
            finally:
                os.close(descriptor)
                self._descriptor = None

    def _write(self) -> None:
        assert self._descriptor is not None
        if self._waiting:
            # One write, so that a reader meets half a line as seldom as the filesystem allows.
            append(self._descriptor, self._waiting)
            self._waiting = b""


def read(path: Path) -> list[StepMetrics]:
    """Return the rows of ``path``, none if there is no such file; a last half line is left out.

    Raises:
        UserError: a whole line is not a row, or the file cannot be read.
    """
    rows: list[StepMetrics] = []
    try:
        for line in json_data.lines(path):
            rows.append(StepMetrics.from_json(line))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"line {len(rows) + 1} of {path} is not a row of metrics ({error}); valid: a file that "
            "ATOM wrote"
        ) from None
    return rows


def last_step(path: Path) -> int:
    """Return the step of the last whole row of ``path``, 0 if there is none."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 8192, 0))
            lines = whole_lines(file.read())
        return StepMetrics.from_json(lines[-1]).step
    except (FileNotFoundError, IndexError, ValueError):
        return 0


def follow(
    path: Path, stop: threading.Event | Callable[[], bool], from_now: bool = False
) -> Iterator[StepMetrics]:
    """Yield the rows of ``path`` as they are written, until ``stop``.

    The file may not exist yet, and may be replaced or truncated on the way: a row is yielded once,
    and again only if it was rolled back and written anew. Lines that are not rows are passed over.

    Args:
        path: the file.
        stop: an event, or a function that says whether to stop. What was written before it said so
            is still yielded.
        from_now: leave out what the file holds at the time of this call (not of the first row).
    """
    tail = Tail(path)
    if from_now:
        tail.lines()
    return _follow(tail, stop)


def _follow(tail: Tail, stop: threading.Event | Callable[[], bool]) -> Iterator[StepMetrics]:
    event = stop if isinstance(stop, threading.Event) else threading.Event()
    stopped = stop.is_set if isinstance(stop, threading.Event) else stop
    try:
        while True:
            last_time = stopped()
            for line in tail.lines():
                try:
                    row = StepMetrics.from_json(line)
                except ValueError:
                    continue
                yield row
            if last_time:
                return
            event.wait(POLL_SECONDS)
    finally:
        tail.close()


def _roll_back(path: Path, step: int) -> None:
    """Leave in ``path`` only whole rows of steps before ``step``; move the others beside it.

    A process that is killed on the way leaves either file as it was or as it should be, and the
    next one ends the work.
    """
    try:
        old = read_bytes(path, most=json_data.FILE)
    except FileNotFoundError:
        return
    kept: list[bytes] = []
    moved: list[bytes] = []
    for line in whole_lines(old):
        (kept if _is_before(line, step) else moved).append(line + b"\n")
    if moved:
        aside = path.with_name(f"{path.stem}.rolled_back{path.suffix}")
        history = read_bytes(aside, most=json_data.FILE) if is_regular(aside) else b""
        if not history.endswith(b"".join(moved)):
            write_bytes(aside, b"".join((history, *moved)))
    if (content := b"".join(kept)) != old:
        write_bytes(path, content)


def _is_before(line: bytes, step: int) -> bool:
    try:
        return StepMetrics.from_json(line).step < step
    except ValueError:
        return False


def _number(field: dataclasses.Field[float], value: object) -> float:
    """Return ``value`` as the number that ``field`` holds."""
    if field.type == "int":
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    elif value is None:
        return math.nan
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{field.name} is {json.dumps(value)}")
