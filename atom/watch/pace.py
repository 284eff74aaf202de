"""Measure how long steps take, and estimate the remaining time."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from atom.run_dir.metrics import StepMetrics


class Pace:
    """A moving average of the time of a step, or of a sequence if steps differ in their number.

    Attributes:
        sequences: returns the sequences of the first steps of the run together.
    """

    def __init__(self) -> None:
        self.sequences: Callable[[int], int] = lambda steps: steps
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
            size = self.sequences(metrics.step) - self.sequences(metrics.step - 1)
            self._seconds.append(metrics.step_seconds / size)
        self._step, self._at = metrics.step, time.monotonic()

    def left(self, steps: int, now: float | None = None) -> float:
        """Return the seconds until step ``steps``, counted from the latest step or from ``now``."""
        if not self._seconds:
            return math.nan
        missing = self.sequences(steps) - self.sequences(self._step)
        left = statistics.fmean(self._seconds) * missing
        return max(left - (0.0 if now is None else now - self._at), 0.0)
