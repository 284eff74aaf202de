"""Compute the axis of a chart: positions of values, ticks, and tick labels."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """An axis that maps values from ``low`` to ``high`` to two positions in the picture's units."""

    low: float
    high: float
    log: bool
    begin: float
    end: float

    def place(self, value: float) -> float:
        """Return the position of ``value``."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log10(v) for v in (low, high, max(value, low)))
        # Halve first, so that the difference cannot overflow.
        span = high / 2 - low / 2
        part = 0.5 if span == 0 else (value / 2 - low / 2) / span
        return self.begin + part * (self.end - self.begin)

    def ticks(self, count: int, *, whole: bool = False) -> list[float]:
        """Return about ``count`` round numbers, or powers of ten on a logarithmic axis."""
        if self.log:
            return _powers(self.low, self.high)
        return _round_numbers(self.low, self.high, count, whole=whole)


def _round_numbers(low: float, high: float, count: int, *, whole: bool) -> list[float]:
    """Return about ``count`` round numbers within an axis."""
    rough = (high / 2 - low / 2) / count * 2
    if rough <= 0 or not math.isfinite(rough):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5, 10) if m * power >= rough), 10 * power)
    if whole:
        step = max(round(step), 1)
    first = math.ceil(low / step)
    found = [number * step for number in range(first, first + 3 * count)]
    return [value for value in found if low <= value <= high * (1 + 1e-12)]


def _powers(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    stride = max((last - first) // 4, 1)
    return [10.0**power for power in range(first, last + 1, stride)]


def tick(value: float) -> str:
    """Return a round number in few characters: ``0.002``, ``1e-05``, ``2.5k``, ``40M``."""
    if value == 0:
        return "0"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if limit <= abs(value) < 1e15:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.3g}"


def px(value: float) -> str:
    """Return a coordinate in the format used in a picture."""
    return f"{value:.1f}".removesuffix(".0")
