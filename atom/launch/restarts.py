"""Decide whether failed ranks are restarted."""

from __future__ import annotations

from dataclasses import dataclass, field

from atom.launch.failure import Failure


@dataclass
class Restarts:
    """A counter of restarts that tells an isolated failure from a crash loop.

    Args:
        limit: number of consecutive restarts without a new checkpoint.
    """

    limit: int
    _used: int = 0
    _saved: int = -1
    _raised_at: set[int | None] = field(default_factory=set)

    def refuse(self, failure: Failure, *, step: int | None, saved: int) -> str | None:
        """Return why the ranks must not be restarted, or None to restart them.

        Args:
            failure: why the ranks ended.
            step: the last step that these ranks trained or loaded; None if they reached none.
            saved: the step of the newest checkpoint, 0 for none.
        """
        if failure.final:
            return ""
        if failure.raised:
            if not step and not saved:
                return ""  # no step has ever succeeded
            if step in self._raised_at:
                return "it failed there before"
            self._raised_at.add(step)
        if saved > self._saved >= 0:
            self._used = 0
        self._saved = saved
        if self._used >= self.limit:
            return f"{self._used} restarts did not help" if self._used else ""
        self._used += 1
        return None
