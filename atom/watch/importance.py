"""Estimate which settings of a sweep explain the differences between its runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atom.errors import shown

FEW = 8
"""Fewer runs than this say little about settings."""


@dataclass(frozen=True)
class Importance:
    """What a setting explains on its own.

    Attributes:
        setting: its key.
        values: number of its different values.
        share: share of the variance of the objective between groups of runs with the same value,
            adjusted for the number of groups as an adjusted R² is: 0 to 1. None if there are too
            few runs to tell.
        best: the value, or the range of values, of the group with the best mean, in words.
        worth: that mean.
    """

    setting: str
    values: int
    share: float | None
    best: str
    worth: float


def importance(
    setting: str, values: Sequence[Any], results: Sequence[float], *, least: bool
) -> Importance:
    """Return what a setting explains.

    Numbers with fewer than two runs for each value are divided into groups of neighbours, of four
    runs or more.

    Args:
        setting: its key.
        values: its value in each run; plain data.
        results: the objective of each run, finite.
        least: whether the lowest result is the best.
    """
    groups = [shown(value) for value in values]
    distinct = len(set(groups))
    numbers = [value for value in values if isinstance(value, int | float) and value is not True]
    if distinct > len(values) / 2 and len(numbers) == len(values):
        groups = _neighbours(numbers)
    means = {
        group: statistics.fmean(r for r, g in zip(results, groups, strict=True) if g == group)
        for group in dict.fromkeys(groups)
    }
    best = (min if least else max)(means, key=lambda group: means[group])
    share = _share(results, [means[group] for group in groups], len(means))
    return Importance(setting, distinct, share, best, means[best])


def _neighbours(values: Sequence[float]) -> list[str]:
    """Return for each value the range of the group that it is in, in words."""
    order = sorted(values)
    count = max(2, min(4, len(order) // 4))
    found = []
    for value in values:
        group = min(order.index(value) * count // len(order), count - 1)
        within = [v for v in order if min(order.index(v) * count // len(order), count - 1) == group]
        found.append(f"{within[0]:.3g} to {within[-1]:.3g}")
    return found


def _share(results: Sequence[float], fitted: Sequence[float], groups: int) -> float | None:
    """Return the adjusted share of the variance of ``results`` that ``fitted`` explains."""
    runs = len(results)
    if runs <= groups or groups < 2:
        return None
    mean = statistics.fmean(results)
    total = sum((result - mean) ** 2 for result in results)
    if total == 0:
        return 0.0
    left = sum((result - fit) ** 2 for result, fit in zip(results, fitted, strict=True))
    return max(0.0, 1 - (left / (runs - groups)) / (total / (runs - 1)))


def ranked(found: Sequence[Importance]) -> list[Importance]:
    """Return settings by their share, those without one last."""
    return sorted(found, key=lambda one: -1.0 if one.share is None else one.share, reverse=True)
