"""Find norms that run away: not finite, or far above their own earlier values."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from atom_diagnostics.config import NormAlert

_NOUNS = {
    "gradient": "gradient norm",
    "weight": "weight norm",
    "update": "update norm",
    "activation": "output",
}
_MOST = 3
"""Layers that one alert names."""


class RunningAway:
    """A history of norms that judges new ones by the median of the earlier ones.

    A layer is named once, and again after a measurement in which it was within the limit.
    """

    def __init__(self, rule: NormAlert) -> None:
        self.rule = rule
        self._earlier: dict[str, deque[float]] = {}
        self._named: set[str] = set()

    def judge(self, kind: str, values: dict[str, float]) -> list[str]:
        """Return a sentence about the layers that run away, in a list that is empty without any.

        Args:
            kind: what is measured, such as ``gradient``.
            values: layer -> its norm, in the order of the model.
        """
        away: dict[str, tuple[float, str]] = {}
        for layer, value in values.items():
            found = self._reason(f"{kind}/{layer}", value)
            if found is None:
                self._named.discard(f"{kind}/{layer}")
            else:
                away[layer] = found
        new = [layer for layer in away if f"{kind}/{layer}" not in self._named]
        self._named.update(f"{kind}/{layer}" for layer in away)
        if not new:
            return []
        # What runs away spreads along the passes: the layer that they reach first is the cause.
        new = new[::-1] if kind == "gradient" else new
        worst = new if kind == "activation" else sorted(new, key=lambda layer: -away[layer][0])
        named = ", ".join(f"{layer} ({away[layer][1]})" for layer in worst[:_MOST])
        others = f", and {len(worst) - _MOST} more" if len(worst) > _MOST else ""
        return [f"{_NOUNS.get(kind, kind)} runs away: {named}{others}"]

    def state(self) -> dict[str, Any]:
        """Return the history as JSON data."""
        earlier = {name: list(values) for name, values in self._earlier.items()}
        return {"earlier": earlier, "named": sorted(self._named)}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a history."""
        self._named = set(state["named"])
        self._earlier = {
            name: deque(values, maxlen=self.rule.window)
            for name, values in state["earlier"].items()
        }

    def _reason(self, name: str, value: float) -> tuple[float, str] | None:
        if not math.isfinite(value):
            return math.inf, str(value)
        earlier = self._earlier.setdefault(name, deque(maxlen=self.rule.window))
        known = len(earlier) >= self.rule.least
        median = statistics.median(earlier) if known else math.inf
        earlier.append(value)
        if value <= self.rule.factor * median:
            return None
        times = value / median if median else math.inf
        return times, f"{value:.3g}, {times:.3g} times its median {median:.3g}"
