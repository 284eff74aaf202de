"""Histograms that callbacks log, as a row of metrics has them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_BINS = 512
"""Maximum number of bins; W&B accepts no more."""

MOST_NUMBERS = 200_000
"""Maximum numbers of a callback in a row: readers refuse a line of 4 MiB."""


@dataclass(frozen=True)
class Histogram:
    """Numbers in bins.

    Attributes:
        edges: the ends of the bins, ascending; bin n is from ``edges[n]`` to ``edges[n + 1]``.
        counts: the number of each bin, or its share.
    """

    edges: Sequence[float]
    counts: Sequence[float]

    def trimmed(self) -> Histogram | None:
        """Return the histogram without empty bins at both ends; None if all bins are empty."""
        filled = [number for number, count in enumerate(self.counts) if count]
        if not filled:
            return None
        first, last = filled[0], filled[-1]
        return Histogram(self.edges[first : last + 2], self.counts[first : last + 1])


@dataclass(frozen=True)
class Histograms:
    """The histograms of one callback in a row, which share their bins.

    Attributes:
        edges: as of :class:`Histogram`.
        counts: the name of a histogram -> its numbers.
    """

    edges: Sequence[float]
    counts: Mapping[str, Sequence[float]]

    def each(self) -> Iterator[tuple[str, Histogram]]:
        """Yield each histogram with its name."""
        for name, counts in self.counts.items():
            yield name, Histogram(self.edges, counts)

    def to_json(self) -> dict[str, Any]:
        """Return the histograms as JSON data, with four significant digits."""
        counts = {name: [_short(count) for count in each] for name, each in self.counts.items()}
        return {"edges": list(self.edges), "counts": counts}


def checked(edges: Sequence[float], counts: Mapping[str, Sequence[float]]) -> Histograms:
    """Return histograms.

    Raises:
        ValueError: they have too many or too few numbers, or wrong ones.
    """
    if not 2 <= len(edges) <= MOST_BINS + 1:
        raise ValueError(f"{len(edges)} edges; valid: 2 to {MOST_BINS + 1}")
    if not all(_is_number(edge) for edge in edges) or list(edges) != sorted(set(edges)):
        raise ValueError("edges that do not ascend")
    if len(edges) * len(counts) > MOST_NUMBERS:
        raise ValueError(f"{len(counts):,} histograms of {len(edges) - 1} bins are too many")
    for name, each in counts.items():
        if len(each) != len(edges) - 1 or not all(_is_number(n) and n >= 0 for n in each):
            raise ValueError(f"{name} does not have a number for each of {len(edges) - 1} bins")
    return Histograms(edges, counts)


def read(value: object) -> dict[str, Histograms]:
    """Return the histograms of a row by callback.

    Raises:
        ValueError: it is not such data.
    """
    found = {}
    for callback, data in value.items() if isinstance(value, dict) else [("", None)]:
        data = data if isinstance(data, dict) else {}
        edges, counts = data.get("edges"), data.get("counts")
        if not isinstance(edges, list) or not isinstance(counts, dict):
            raise ValueError(f"histograms is {json.dumps(value)[:80]}")
        if not all(isinstance(each, list) for each in counts.values()):
            raise ValueError(f"counts of histograms.{callback} is {json.dumps(counts)[:80]}")
        try:
            found[callback] = checked(edges, counts)
        except ValueError as error:
            raise ValueError(f"histograms.{callback}: {error}") from None
    return found


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _short(number: float) -> float:
    return number if isinstance(number, int) else float(f"{number:.4g}")
