"""Write and read ``evals.jsonl``: the results of evaluations of checkpoints, or of an export.

A line is a JSON object. All lines of a task are written in a single write, so that processes can
share the file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import append, opened
from atom.io.tail import Tail

FILE_NAME = "evals.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One number of a task for one set of weights, with everything that is needed to compute it
    again."""

    time: str
    """When it was computed: ISO 8601, UTC."""

    step: int | None
    """Step of the checkpoint; null for a folder in Hugging Face's format."""

    evaluator: str
    """Name of the evaluator's component."""

    task: str
    """The task, or a part of a task, as the evaluator names it."""

    metric: str
    value: float
    """The number; not finite: ``null``, and NaN when read back."""

    stderr: float | None = None
    """Standard error of the value."""

    samples: int
    """Number of documents."""

    higher_is_better: bool | None = None
    few_shot: int | None = None
    """Examples in each prompt."""

    asked: str
    """The task that ``atom eval`` was asked for."""

    version: str | None = None
    """Version of the task."""

    package: str
    """Package of the evaluator, and its version."""

    parameters: dict[str, Any] = field(default_factory=dict)
    """Parameters of the evaluator."""

    prompts: str
    """Digest of all texts that the evaluator has made requests of, 16 hexadecimal digits."""

    average: str | None = None
    """The callback that has averaged the weights; null: the weights themselves."""

    limit: int | None = None
    """Maximum number of documents; null: all."""

    seed: int = 0

    truncated: int = 0
    """Requests that were longer than ``max_length``, and lost their beginning."""

    max_length: int
    """Longest sequence in tokens."""

    weights: str
    """SHA-256 of the checkpoint's manifest, or of the digests of the files of weights."""

    tokenizer: str | None = None
    """Digest of the tokenizer's files."""

    dtype: str
    """Precision of the weights in the forward pass."""

    atom: str
    """Version of ATOM."""

    @property
    def name(self) -> str:
        """The task and the metric, and what has averaged the weights: ``arc_easy acc (ema)``."""
        average = f" ({self.average})" if self.average else ""
        return f"{self.task} {self.metric}{average}"

    @property
    def key(self) -> tuple[str, str]:
        """The evaluator and the name."""
        return self.evaluator, self.name

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Evaluation:
        """Return the result in plain data; other keys are ignored.

        Raises:
            ValueError: it is no result.
        """
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        found = {each.name: value[each.name] for each in fields(cls) if each.name in value}
        if found.get("value") is None:
            found["value"] = math.nan
        for name, kinds in _KINDS.items():
            if not isinstance(found.get(name), kinds) or isinstance(found.get(name), bool):
                raise ValueError(f"{name} is missing or of another type")
        try:
            return cls(**found)
        except TypeError as error:
            raise ValueError(str(error)) from None


_KINDS: dict[str, Any] = {
    "step": int | None,
    "value": int | float,
    "samples": int,
    "stderr": int | float | None,
    "few_shot": int | None,
    "limit": int | None,
    "average": str | None,
} | dict.fromkeys(("time", "evaluator", "task", "metric", "asked", "package", "prompts"), str)


Tracked = dict[int, dict[str, float]]
"""Step -> the name in trackers -> the value."""


class Arriving:
    """The results of checkpoints that are added to the file in a folder from now on."""

    def __init__(self, folder: Path) -> None:
        self._tail = Tail(folder / FILE_NAME)
        self._tail.lines()

    def new(self) -> Tracked:
        """Return the results since the last call; lines that are no result are ignored."""
        found = []
        for line in self._tail.lines():
            with suppress(ValueError):
                found.append(Evaluation.from_json(json_data.loads(line)))
        return tracked(found)

    def close(self) -> None:
        """Close the file."""
        self._tail.close()


def tracked(results: Iterable[Evaluation]) -> Tracked:
    """Return the finite numbers of checkpoints as trackers name them."""
    found: Tracked = {}
    for result in results:
        if result.step is not None and math.isfinite(result.value):
            average = f"/{result.average}" if result.average else ""
            name = f"evaluation/{result.task}/{result.metric}{average}"
            found.setdefault(result.step, {})[name] = result.value
    return found


def record(folder: Path, results: Sequence[Evaluation]) -> None:
    """Append results to the file in a folder, completely or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    if not results:
        return
    text = "".join(f"{json_data.dumps(result.to_json())}\n" for result in results)
    path = folder / FILE_NAME
    try:
        file = opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(file).st_size
            # A process that was killed may have left half a line.
            cut = size and os.pread(file, 1, size - 1) != b"\n"
            append(file, (f"\n{text}" if cut else text).encode())
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def read(folder: Path) -> list[Evaluation]:
    """Return the results in a folder in order; lines that are no result are ignored.

    Raises:
        UserError: the file is unreadable.
    """
    found = []
    try:
        for line in json_data.lines(folder / FILE_NAME):
            try:
                found.append(Evaluation.from_json(json_data.loads(line)))
            except ValueError:
                continue
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder / FILE_NAME} cannot be read: {error.strerror}") from None
    return found


def by_name(results: Iterable[Evaluation]) -> dict[str, list[Evaluation]]:
    """Return the newest result of each step, in the order of steps, by task and metric.

    Names begin with the evaluator if several have the same task.
    """
    newest: dict[tuple[Any, ...], Evaluation] = {}
    for result in results:
        newest[(*result.key, -1 if result.step is None else result.step)] = result
    ordered = [newest[key] for key in sorted(newest)]
    shared = _shared(ordered)
    found: dict[str, list[Evaluation]] = {}
    for result in ordered:
        name = f"{result.evaluator}:{result.name}" if result.name in shared else result.name
        found.setdefault(name, []).append(result)
    return found


def _shared(results: Iterable[Evaluation]) -> set[str]:
    owners: dict[str, set[str]] = {}
    for result in results:
        owners.setdefault(result.name, set()).add(result.evaluator)
    return {name for name, evaluators in owners.items() if len(evaluators) > 1}


def points(results: Mapping[str, Sequence[Evaluation]]) -> Iterator[tuple[str, list[Any]]]:
    """Yield the name and (step, value) pairs of each number of checkpoints."""
    for name, each in results.items():
        if found := [(result.step, result.value) for result in each if result.step is not None]:
            yield name, found
