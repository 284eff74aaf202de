"""Compare a segment that was trained again with the released one, and explain a difference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atom.io import json_data
from atom.recipe import settings
from atom.release.bundle import Bundle
from atom.release.segments import Segment
from atom.run_dir import checkpoint, inputs, metrics, starts
from atom.run_dir.folder import LOCK
from atom.run_dir.metrics import StepMetrics

_BITS = ("data", "stream", "loss", "grad_norm", "lr")
"""Fields of a row that are compared, in the order in which one causes the next."""

_IN_LOCK = (
    "python",
    "platform",
    "environment",
    "code",
    "plugins",
    "kernels",
    "variables",
    "device",
)
_MACHINE = ("processor", "capability", "threads", "device", "torch", "system")
_MOST = 64 << 20
_MOST_NAMED = 12


@dataclass
class Compared:
    """The comparison of a segment.

    Attributes:
        segment: the segment.
        equal: whether all that was compared is equal, bit for bit.
        steps: the number of logged steps compared.
        tensors: the number of tensors compared.
        first: the first difference: step, field and both values; or the tensor.
        same_data: whether the digests of data and tokens are equal.
        largest: the largest relative difference of a loss.
        reasons: what in the locks could explain it.
        failed: why it could not be trained, or None.
    """

    segment: Segment
    equal: bool = True
    steps: int = 0
    tensors: int = 0
    first: dict[str, Any] | None = None
    same_data: bool = True
    largest: float = 0.0
    reasons: list[str] = field(default_factory=list)
    failed: str | None = None

    def differs(self, **where: Any) -> None:
        """Record a difference; only the first is kept."""
        self.equal = False
        if self.first is None:
            self.first = where

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as data."""
        return {
            "segment": self.segment.number,
            "stage": self.segment.stage.name,
            "steps": [self.segment.first + 1, self.segment.end.step],
            "equal": self.equal,
            "compared": {"logged_steps": self.steps, "tensors": self.tensors},
            "first_difference": self.first,
            "same_data": self.same_data,
            "largest_relative_difference_of_losses": self.largest,
            "reasons": self.reasons,
            "failed": self.failed,
        }


def compare(released: Bundle, segment: Segment, place: Path) -> Compared:
    """Compare the run in ``place`` with a released segment."""
    found = Compared(segment)
    there = released.folder / segment.end.folder
    _inputs(found, there, place)
    _rows(found, released.run_folder(segment.stage), place)
    _tensors(found, there, checkpoint.step_folder(place / checkpoint.FOLDER, segment.end.step))
    if not found.steps and not found.tensors:
        found.differs(reason="nothing could be compared: no logged step and no digest of tensors")
    if not found.equal:
        found.reasons = _reasons(released, segment, place)
    return found


def _inputs(found: Compared, there: Path, place: Path) -> None:
    before, now = (inputs.read(each / inputs.FILE_NAME) for each in (there, place))
    if before is None or now is None:
        return
    for name in ("dataset", "tokenizer"):
        told, here = getattr(before, name), getattr(now, name)
        if told.digest != here.digest:
            found.same_data = False
            found.differs(**{"input": name, "difference": here.difference(told)})


def _rows(found: Compared, there: Path, place: Path) -> None:
    segment = found.segment
    here = {row.step: row for row in metrics.read(place / metrics.FILE_NAME)}
    for row in metrics.read(there / metrics.FILE_NAME):
        if not segment.first < row.step <= segment.end.step:
            continue
        found.steps += 1
        if (again := here.get(row.step)) is None:
            found.differs(step=row.step, field="step", released=row.step, here=None)
            return
        for name in _BITS:
            _field(found, name, row, again)


def _field(found: Compared, name: str, row: StepMetrics, again: StepMetrics) -> None:
    told, here = getattr(row, name), getattr(again, name)
    if told is None or told == here or (told != told and here != here):
        return
    if name in ("data", "stream"):
        found.same_data = False
    if name == "loss" and math.isfinite(told) and isinstance(here, float):
        found.largest = max(found.largest, abs(here - told) / max(abs(told), 1e-12))
    found.differs(step=row.step, field=name, released=told, here=here)


def _tensors(found: Compared, there: Path, here: Path) -> None:
    told, again = _digests(there), _digests(here)
    if not told:
        return
    if not again:
        found.differs(step=found.segment.end.step, tensor="all", here="no checkpoint")
        return
    differing = [name for name in told if name in again and told[name] != again[name]]
    found.tensors = len(told.keys() & again.keys())
    if differing:
        # In the order of the model: of a layer, what is computed first.
        first = next(
            (name for name in differing if not name.startswith("optimizer.")), differing[0]
        )
        found.differs(step=found.segment.end.step, tensor=first, differing=len(differing))


def _digests(place: Path) -> dict[str, Any]:
    try:
        listed = json_data.read(place / checkpoint.TENSORS, most=_MOST).get("tensors")
    except FileNotFoundError:
        return {}
    return listed if isinstance(listed, dict) else {}


def _reasons(released: Bundle, segment: Segment, place: Path) -> list[str]:
    """Return what differs between the locks, and between the machines."""
    run = released.run_folder(segment.stage)
    number = segment.end.start
    kept = starts.place(run, number) if number is not None else run
    now = starts.newest(place) or place
    found = _differences(_read(kept / LOCK), _read(now / LOCK), _IN_LOCK)
    machines = [sorted(each.glob("machine-*.json")) for each in (kept, now)]
    if all(machines):
        before, after = (_read(each[0]) for each in machines)
        found += _differences(before, after, _MACHINE)
    return found[:_MOST_NAMED]


def _differences(before: dict[str, Any], now: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    old, new = (
        settings.leaves({key: _named(each.get(key)) for key in keys}) for each in (before, now)
    )
    return [
        f"{key}: {old.get(key)} there, {new.get(key)} here"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _named(value: Any) -> Any:
    """Return a list of plugins or kernels as a dictionary by package or operation."""
    if not isinstance(value, list):
        return value
    return {
        str(each.get("package") or each.get("operation")): {
            name: each.get(name) for name in ("version", "sha256", "kernel") if name in each
        }
        for each in value
        if isinstance(each, Mapping)
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return json_data.read(path)
    except (OSError, ValueError):
        return {}
