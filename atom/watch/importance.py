"""Estimate which settings of a sweep explain the differences between its runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atom.errors import shown

FEW = 8
"""Fewer runs than this say little about settings."""


@dataclass(frozen=True)
class Importance:
    """What a setting explains on its own.

    Attributes:
        setting: its key.
        values: number of its different values.
        share: share of the variance of the objective that a mean for each value explains, adjusted
            for the number of values as an adjusted R² is: 0 to 1. For numbers that a search has
            drawn, that of a parabola over their ranks. None if there are too few runs to tell.
        best: the value with the best mean, or a range of neighbours, in words.
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

    Args:
        setting: its key.
        values: its value in each run; plain data.
        results: the objective of each run, finite.
        least: whether the lowest result is the best.
    """
    groups = [shown(value) for value in values]
    distinct = len(set(groups))
    # Hardly any value is there twice: a mean for each of them would explain everything.
    drawn = distinct > len(values) / 2 and all(map(is_number, values))
    if drawn:
        groups = _neighbours(values)
    means = {
        group: statistics.fmean(r for r, g in zip(results, groups, strict=True) if g == group)
        for group in dict.fromkeys(groups)
    }
    best = (min if least else max)(means, key=lambda group: means[group])
    if drawn:
        share = _share(results, _parabola(values, results), 3)
    else:
        share = _share(results, [means[group] for group in groups], len(means))
    return Importance(setting, distinct, share, best, means[best])


def ranked(found: Sequence[Importance]) -> list[Importance]:
    """Return settings by their share, those without one last."""
    return sorted(found, key=lambda one: -1.0 if one.share is None else one.share, reverse=True)


def is_number(value: object) -> bool:
    """Return whether a value of a setting is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _neighbours(values: Sequence[float]) -> list[str]:
    """Return for each value the range of its group of neighbours, in words: two to four groups."""
    order = sorted(values)
    count = max(2, min(4, len(order) // 3))
    groups = [order.index(value) * count // len(order) for value in order]
    words = {}
    for group in set(groups):
        within = [value for value, of in zip(order, groups, strict=True) if of == group]
        words[group] = f"{within[0]:.3g} to {within[-1]:.3g}"
    return [words[groups[order.index(value)]] for value in values]


def _parabola(values: Sequence[float], results: Sequence[float]) -> list[float]:
    """Return the parabola over the ranks of ``values`` that fits ``results`` best."""
    order = sorted(values)
    ranks = np.array([order.index(value) for value in values]) / len(values) - 0.5
    terms = np.stack([np.ones_like(ranks), ranks, ranks**2], axis=1)
    factors = np.linalg.lstsq(terms, np.array(results), rcond=None)[0]
    fitted: list[float] = (terms @ factors).tolist()
    return fitted


def _share(results: Sequence[float], fitted: Sequence[float], terms: int) -> float | None:
    """Return the adjusted share of the variance of ``results`` that ``fitted`` explains."""
    runs = len(results)
    if runs <= terms or terms < 2:
        return None
    mean = statistics.fmean(results)
    total = sum((result - mean) ** 2 for result in results)
    if total == 0:
        return 0.0
    left = sum((result - fit) ** 2 for result, fit in zip(results, fitted, strict=True))
    return max(0.0, 1 - (left / (runs - terms)) / (total / (runs - 1)))
