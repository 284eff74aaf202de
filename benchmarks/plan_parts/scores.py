"""Score predictions against measurements: errors, order of layouts, drift with GPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log, log2, sqrt
from statistics import median

from plan_parts.jobs import Job

SAME = 0.02
"""Rows whose throughputs differ by less are not ordered: repetitions differ as much."""


@dataclass(frozen=True)
class Scored:
    """A job and the predicted seconds of its step."""

    job: Job
    predicted: float

    @property
    def error(self) -> float:
        """Return the relative error of the step's time."""
        return self.predicted / self.job.seconds - 1.0

    @property
    def logarithm(self) -> float:
        return log(self.predicted / self.job.seconds)


def is_hopper(scored: Scored) -> bool:
    return scored.job.gpu.startswith(("H100", "H200"))


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def table(rows: Iterable[Scored], by: Callable[[Scored], str]) -> list[str]:
    """Return a Markdown table of errors, by group."""
    groups: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        groups[by(row)].append(row)
    lines = [
        "| | rows | median error | median absolute | within 10 % | within 20 % | worst |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in sorted(groups.items()):
        errors = [row.error for row in each]
        sizes = [abs(error) for error in errors]
        worst = max(errors, key=abs)
        lines.append(
            f"| {name} | {len(each)} | {median(errors):+.1%} | {median(sizes):.1%} | "
            f"{sum(s <= 0.1 for s in sizes) / len(sizes):.0%} | "
            f"{sum(s <= 0.2 for s in sizes) / len(sizes):.0%} | {worst:+.0%} |"
        )
    return lines


def ordered(rows: Iterable[Scored]) -> tuple[int, int]:
    """Return the pairs of layouts in the right order, and all pairs.

    A pair is of one source, GPU, model and number of layers. Throughput a GPU is compared.
    """
    groups: dict[tuple[str, ...], list[Scored]] = defaultdict(list)
    for row in rows:
        job = row.job
        groups[job.source, job.gpu, job.model].append(row)
    right = pairs = 0
    for each in groups.values():
        for one, two in combinations(each, 2):
            measured = log(_rate(one.job, one.job.seconds) / _rate(two.job, two.job.seconds))
            if abs(measured) < SAME:
                continue
            predicted = log(_rate(one.job, one.predicted) / _rate(two.job, two.predicted))
            pairs += 1
            right += measured * predicted > 0
    return right, pairs


def _rate(job: Job, seconds: float) -> float:
    layout = job.layout
    tokens = layout.dp * layout.local_batch_size * layout.accumulation * layout.seq_len
    return tokens / seconds / job.gpus


def drift(rows: Iterable[Scored]) -> tuple[float, float, int]:
    """Return the slope of the logarithm of the error against log2(GPUs), its error, and rows.

    Each group of one source, model, precision and GPU has a mean of its own, so that only scaling
    counts.
    """
    groups: dict[tuple[str, ...], list[Scored]] = defaultdict(list)
    for row in rows:
        job = row.job
        groups[job.source, job.gpu, job.model, job.precision].append(row)
    x: list[float] = []
    y: list[float] = []
    used = 0
    for each in groups.values():
        sizes = [log2(row.job.gpus) for row in each]
        if len(set(sizes)) < 2:
            continue
        used += 1
        errors = [row.logarithm for row in each]
        x += [size - sum(sizes) / len(sizes) for size in sizes]
        y += [error - sum(errors) / len(errors) for error in errors]
    square = sum(a * a for a in x)
    if not square:
        return 0.0, 0.0, 0
    slope = sum(a * b for a, b in zip(x, y, strict=True)) / square
    left = sum((b - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return slope, sqrt(left / max(len(x) - used - 1, 1) / square), len(x)
