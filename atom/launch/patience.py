"""How long ranks may take before they count as hung."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """Seconds until ranks without a step count as hung.

    Starting takes longer than a step: ranks import, meet, build, load, and compile.
    """

    start: float
    """From the start of the ranks until their first step is done."""
    step: float
    """From one step to the next."""


class Watch:
    """Tells from the heartbeats of ranks whether they hang.

    Args:
        begin: when the ranks were started, in seconds since the epoch.
    """

    def __init__(self, patience: Patience, begin: float) -> None:
        self._patience = patience
        self._begin = begin
        self._loaded: int | None = None
        self._stepped = False

    def complaint(self, last: tuple[int, float] | None, now: float) -> str | None:
        """Return what is wrong, or None if ranks have time left.

        Args:
            last: the newest heartbeat (:func:`atom.heartbeat.last`); the first of these ranks tells
                the step that they go on from.
            now: in seconds since the epoch.
        """
        moved = self._begin
        if last is not None and last[1] > self._begin:
            step, moved = last
            if self._loaded is None:
                self._loaded = step
            self._stepped = self._stepped or step != self._loaded
        if self._stepped:
            limit, what = self._patience.step, "no step"
        else:
            limit, what, moved = self._patience.start, "no first step", self._begin
        if now - moved < limit:
            return None
        return f"{what} in {limit:g} s: ranks hang (stacks are in their logs)"
