"""Format numbers for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def human(number: float) -> str:
    """Return a count with two or three digits: ``6.1 M``."""
    if not math.isfinite(number):
        return str(number)
    units = ["", " K", " M", " B", " T"]
    while abs(number) >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    digits = 0 if not units[0] or abs(number) >= 99.95 else 1
    return f"{number:,.{digits}f}{units[0]}"


def clock(seconds: float) -> str:
    """Return a duration: ``0:31``, ``1:02:03``, ``3 d 4 h``; ``?`` if unknown."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(max(round(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,} d {hours % 24} h"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def sparkline(values: Sequence[float], columns: int, *, ascii_only: bool = False) -> str:
    """Return ``values`` as a sparkline of at most ``columns`` characters.

    If there are more values than columns, each column shows their median; a cross marks a column
    without finite values.
    """
    levels, gap = (".:-=+*#@", "x") if ascii_only else ("▁▂▃▄▅▆▇█", "×")
    count = min(len(values), max(columns, 1))
    points: list[float | None] = []
    for column in range(count):
        begin, end = column * len(values) // count, (column + 1) * len(values) // count
        finite = [value for value in values[begin:end] if math.isfinite(value)]
        points.append(statistics.median_low(finite) if finite else None)
    known = [point for point in points if point is not None]
    low = min(known, default=0.0)
    # Halve first, so that the difference cannot overflow.
    span = max(known, default=0.0) / 2 - low / 2

    def level(point: float) -> str:
        if span == 0:
            return levels[len(levels) // 2]
        return levels[min(int((point / 2 - low / 2) / span * len(levels)), len(levels) - 1)]

    return "".join(gap if point is None else level(point) for point in points)


def decimal(value: float, digits: int) -> str:
    """Return ``value`` with ``digits`` decimals, or in scientific notation if they would all be
    zero."""
    if value == 0 or not math.isfinite(value) or 10.0**-digits <= abs(value) < 1e5:
        return f"{value:.{digits}f}"
    return f"{value:.1e}"
