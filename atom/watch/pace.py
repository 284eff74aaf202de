"""Measure how long steps take, and estimate the remaining time."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque

from atom.run_dir.metrics import StepMetrics


class Pace:
    """A moving average of the step time."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=20)
        self._step = 0
        self._at = 0.0
        self._warm = False

    def add(self, metrics: StepMetrics) -> None:
        if metrics.step <= self._step:
            self._seconds.clear()  # restarted
            self._warm = False
        elif self._seconds and not self._warm:
            self._seconds.clear()  # the first step includes warm-up
            self._warm = True
        if math.isfinite(metrics.step_seconds):
            self._seconds.append(metrics.step_seconds)
        self._step, self._at = metrics.step, time.monotonic()

    def left(self, steps: int, now: float | None = None) -> float:
        """Return the seconds until step ``steps``, counted from the latest step or from ``now``."""
        if not self._seconds:
            return math.nan
        left = statistics.fmean(self._seconds) * (steps - self._step)
        return max(left - (0.0 if now is None else now - self._at), 0.0)
