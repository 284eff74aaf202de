"""How long ranks may take before they count as hung."""

from __future__ import annotations

from atom.run import Launch


class Patience:
    """Tells from the heartbeats of ranks whether they hang.

    Starting takes longer than a step: ranks import, meet, build, load, and compile.

    Args:
        launch: how long the first step and those after it may take.
        begin: when the ranks were started, in seconds since the epoch.
    """

    def __init__(self, launch: Launch, begin: float) -> None:
        self._launch = launch
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
            limit, what = self._launch.hang_seconds, "no step"
        else:
            limit, what, moved = self._launch.start_seconds, "no first step", self._begin
        if now - moved < limit:
            return None
        return f"{what} in {limit:g} s: ranks hang (stacks are in their logs)"
