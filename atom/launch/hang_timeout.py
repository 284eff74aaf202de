"""Decide how long ranks may take before they count as hung."""

from __future__ import annotations

from atom.recipe.sections import Launch
from atom.run_dir.heartbeat import Beat


class Patience:
    """A detector that finds hung ranks from their heartbeats.

    Startup takes longer than a step: ranks import, rendezvous, build, load, and compile.

    Args:
        launch: timeouts for the first step and for later steps.
        begin: when the ranks were started, in seconds since the epoch.
    """

    def __init__(self, launch: Launch, begin: float) -> None:
        self._launch = launch
        self._begin = begin

    def complaint(self, last: Beat | None, now: float) -> str | None:
        """Return why the ranks count as hung, or None if they have time left.

        Args:
            last: the newest heartbeat (:func:`atom.run_dir.heartbeat.last`), from these ranks or
                from an earlier start.
            now: in seconds since the epoch.
        """
        if last is not None and last.time > self._begin and last.number > 1:
            limit, what, moved = self._launch.hang_seconds, "no step", last.time
        else:
            limit, what, moved = self._launch.start_seconds, "no first step", self._begin
        if now - moved < limit:
            return None
        return f"{what} in {limit:g} s: ranks hang (stacks are in their logs)"
