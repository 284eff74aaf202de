"""Whether ranks that failed are started again."""

from __future__ import annotations

from dataclasses import dataclass, field

from atom.launch.failure import Failure


@dataclass
class Restarts:
    """Counts restarts, and tells bad luck from a crash loop.

    Args:
        limit: restarts in a row, without a new checkpoint in between.
    """

    limit: int
    _used: int = 0
    _saved: int = -1
    _raised_at: set[int | None] = field(default_factory=set)

    def refuse(self, failure: Failure, *, step: int | None, saved: int) -> str | None:
        """Return why the ranks are not to be started again, or None if they are.

        Args:
            failure: what ended them.
            step: the last that these ranks did or loaded; None if they came to none.
            saved: the step of the newest checkpoint, 0 for none.
        """
        if failure.final:
            return ""
        if failure.raised:
            if not step and not saved:
                return ""  # it has never worked
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
