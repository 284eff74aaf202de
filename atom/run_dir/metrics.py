"""Write and read ``metrics.jsonl``: one JSON object per logged step. A stable interface.

One process at a time writes the file; any number can read it while it grows. ``docs/metrics.md``
documents the format for readers without ATOM.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from atom.io.numbers import decimal
from atom.io.tail import Tail
from atom.run_dir import histograms, validated
from atom.run_dir.histograms import Histograms
from atom.run_dir.validated import SetResult

FILE_NAME = "metrics.jsonl"
"""Name of the file in a run folder."""

POLL_SECONDS = 0.15

_DIGEST = re.compile("[0-9a-f]{16}")

CallbackValues = dict[str, dict[str, float]]
"""The name of a callback in the run -> the name of a value -> the value."""

ALWAYS = 9
"""``stays`` of a column that never leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """One row. Non-finite floats are ``null`` in JSON, and NaN when read back."""

    step: int
    """Number of the optimizer step, counted from 1 since the run began."""

    loss: float
    """Mean cross-entropy per token over the global batch, in nats; or the loss of the objective, as
    a mean over the examples of the global batch."""

    grad_norm: float
    """L2 norm of the gradient of all parameters, before clipping."""

    lr: float
    """Learning rate of this step."""

    tokens_seen: int
    """Tokens trained on since the run began, over all ranks."""

    tokens_per_second: float
    """Tokens trained on per second, over all ranks, since the previous row."""

    step_seconds: float
    """Mean wall-clock seconds per step since the previous row."""

    memory_gib: float
    """Peak memory of the rank that writes, in GiB (2**30 bytes): device memory on a GPU, resident
    set size on a CPU."""

    mfu: float | None = None
    """Model FLOPS utilization, as a fraction of the devices' peak: 0 to 1. None, and absent from
    the JSON, if the peak is unknown."""

    z_loss: float | None = None
    """``loss.z_loss`` times the mean over tokens of the square of log(sum(exp(logits))), which
    ``loss`` does not contain. None, and absent from the JSON, without ``loss.z_loss``."""

    mtp_loss: float | None = None
    """The mean loss of multi-token prediction over its depths, in nats per token of the batch,
    which ``loss`` does not contain. None, and absent from the JSON, for a model without it."""

    data: str | None = None
    """Digest of the tokens of this step's global batch, 16 hexadecimal digits; the same on every
    layout. None, and absent from the JSON, if the data loader is the dataset's own."""

    stream: str | None = None
    """Digest of the tokens of all steps up to this one, in their order, 16 hexadecimal digits; the
    same on every layout. None, and absent from the JSON, as ``data``."""

    data_seconds: float | None = None
    """Mean seconds per step, since the previous row, in which the rank that writes has waited for
    data. None, and absent from the JSON, in rows of earlier versions."""

    callbacks: CallbackValues | None = dataclasses.field(default=None, hash=False)
    """The values that callbacks of plugins have logged for this step: the name of the callback in
    the run -> the name of the value -> the value. None, and absent from the JSON, without any."""

    histograms: dict[str, Histograms] | None = dataclasses.field(default=None, hash=False)
    """The histograms that callbacks have logged for this step, by the name of the callback in the
    run. None, and absent from the JSON, without any."""

    validation: dict[str, SetResult] | None = dataclasses.field(default=None, hash=False)
    """The results of the validation sets, by name, with the weights after this step. None, and
    absent from the JSON, if the step is not validated."""

    objective: dict[str, float] | None = dataclasses.field(default=None, hash=False)
    """Values of the objective beside its loss, such as the accuracy of preferences: means over the
    examples of the global batch. None, and absent from the JSON, without any."""

    def to_json(self) -> str:
        """Return the row as one line of JSON, without the newline."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("histograms", "validation"):
            if values[name] is not None:
                values[name] = {key: each.to_json() for key, each in values[name].items()}
        return dumps({name: value for name, value in values.items() if value is not None})

    @classmethod
    def from_json(cls, line: str | bytes) -> StepMetrics:
        """Return the row in ``line``; keys of later versions are ignored.

        Raises:
            ValueError: ``line`` is not a row.
        """
        values = json_data.loads(line.encode() if isinstance(line, str) else line)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        row: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in values:
                row[field.name] = _value(field, values[field.name])
            elif field.default is dataclasses.MISSING:
                raise ValueError(f"{field.name} is missing")
        return cls(**row)


@dataclass(frozen=True)
class Shown:
    """How a screen shows a field of a row.

    Attributes:
        text: returns the value as text.
        words: the value in the line of a step: ``loss {}``.
        head: the head of its column on a terminal.
        width: the width of the column.
        stays: the order in which columns leave a narrow terminal, the lowest first.
    """

    text: Callable[[float], str]
    words: str
    head: str
    width: int
    stays: int = 0


SHOWN = {
    "loss": Shown(lambda value: decimal(value, 4), "loss {}", "loss", 9, ALWAYS),
    "grad_norm": Shown(lambda value: decimal(value, 2), "grad_norm {}", "grad norm", 9, 4),
    "lr": Shown("{:.1e}".format, "lr {}", "lr", 7, 2),
    "tokens_per_second": Shown("{:,.0f}".format, "{} tok/s", "tokens/s", 9, ALWAYS),
    "mfu": Shown("{:.1%}".format, "mfu {}", "mfu", 5, ALWAYS),
    "step_seconds": Shown(lambda value: decimal(value, 2), "{} s/step", "s/step", 6, 1),
    "memory_gib": Shown("{:.1f} GiB".format, "{}", "memory", 9, 3),
}
"""Field -> how a screen shows it, in the order of the line. A value of None is not shown."""


class MetricsWriter:
    """A writer that appends rows to ``path`` and keeps each step once, in ascending order, however
    often the run is interrupted and resumed.

    Args:
        path: the file. The first :meth:`append` opens it, and repairs it if necessary.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = b""
        self._descriptor: int | None = None
        self._last_step: int | None = None

    def append(self, metrics: StepMetrics) -> None:
        """Append one complete row.

        If an earlier process has written rows from ``metrics.step`` on (it got further than the
        checkpoint that this one resumed from), they are first moved to
        ``metrics.rolled_back.jsonl``.

        On a full disk the row is kept and written with the next one; only :meth:`close` raises.

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
        """Move the rows after ``step`` to ``metrics.rolled_back.jsonl``, because those steps are
        repeated."""
        self.close()
        _roll_back(self._path, step + 1)

    def close(self) -> None:
        """Close the file. A later :meth:`append` opens it again.

        Raises:
            OSError: pending rows could not be written.
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
            # A single write, so that readers rarely see an incomplete line.
            append(self._descriptor, self._waiting)
            self._waiting = b""


def read(path: Path) -> list[StepMetrics]:
    """Return the rows of ``path``, none if the file does not exist; ignore an incomplete last line.

    Raises:
        UserError: a complete line is not a row, or the file is unreadable.
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
            f"line {len(rows) + 1} of {path} is not a row of metrics ({error})",
            valid="a file that ATOM wrote",
        ) from None
    return rows


def last_step(path: Path) -> int:
    """Return the step of the last complete row of ``path``, 0 if there is none."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            lines: list[bytes] = []
            length = 0
            # The first line that is read may be the end of a longer one.
            while len(lines) < 2 and length < min(size, 2 * json_data.LINE):
                length = 4 * length or 8192
                file.seek(max(size - length, 0))
                lines = whole_lines(file.read())
        return StepMetrics.from_json(lines[-1]).step
    except (FileNotFoundError, IndexError, ValueError):
        return 0


def follow(
    path: Path, stop: threading.Event | Callable[[], bool], from_now: bool = False
) -> Iterator[StepMetrics]:
    """Yield the rows of ``path`` as they are written, until ``stop``.

    The file need not exist yet, and can be replaced or truncated meanwhile: each row is yielded
    once, and again only if it was rolled back and rewritten. Lines that are not rows are ignored.

    Args:
        path: the file.
        stop: an event, or a function that returns whether to stop. Rows written before that are
            still yielded.
        from_now: skip the rows that the file holds at the time of this call (not of the first row).
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
    """Keep in ``path`` only complete rows before ``step``; move the others to the file beside it.

    A process killed meanwhile leaves each file in its old or its final state, and the next process
    completes the work.
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


def by_set(rows: Iterable[StepMetrics]) -> dict[str, list[tuple[int, SetResult]]]:
    """Return (step, result) of each validation set, by name."""
    found: dict[str, list[tuple[int, SetResult]]] = {}
    for row in rows:
        for name, result in (row.validation or {}).items():
            found.setdefault(name, []).append((row.step, result))
    return found


def _value(field: dataclasses.Field[Any], value: object) -> Any:
    """Return ``value`` as the type of ``field``."""
    if field.name == "callbacks":
        return _callback_values(value)
    if field.name == "objective":
        return _callback_values({"objective": value})["objective"]
    if field.name == "histograms":
        return histograms.read(value)
    if field.name == "validation":
        return validated.read(value)
    if field.type == "str | None":
        if isinstance(value, str) and _DIGEST.fullmatch(value):
            return value
    elif field.type == "int":
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
    elif value is None:
        return math.nan
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"{field.name} is {json.dumps(value)}")


def _callback_values(value: object) -> CallbackValues:
    found: CallbackValues = {}
    for name, values in value.items() if isinstance(value, dict) else [("", None)]:
        if not isinstance(values, dict):
            raise ValueError(f"callbacks is {json.dumps(value)[:80]}")
        found[name] = {}
        for key, number in values.items():
            if isinstance(number, bool) or not isinstance(number, int | float | None):
                raise ValueError(f"{key} of callbacks.{name} is {json.dumps(number)[:80]}")
            found[name][key] = math.nan if number is None else float(number)
    return found
