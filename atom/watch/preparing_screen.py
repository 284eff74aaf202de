"""Show the progress of the preparation of token shards."""

from __future__ import annotations

import sys
import time

from atom.data.preparing import Progress
from atom.io.numbers import clock, human
from atom.io.terminal import Animation, Encodable, Styled, say

_LINE_SECONDS = 10
"""Seconds between two lines of progress if the output is not a terminal."""


class Screen:
    """A line of progress: redrawn on a terminal, printed now and then otherwise."""

    def __init__(self) -> None:
        target = Encodable(sys.stdout)
        self._console = Styled(target)
        self._terminal = target.isatty() and self._console.is_interactive
        self._line = ""
        self._bar: Animation | None = None
        self._began = self._told = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Show the progress; the first call comes after the workers have been forked."""
        now = time.monotonic()
        self._line = self._words(progress, now - self._began)
        if self._terminal:
            if self._bar is None:
                self._bar = Animation(self._console, lambda: self._line)
        elif now - self._told >= _LINE_SECONDS:
            self._told = now
            say(self._line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _words(self, progress: Progress, seconds: float) -> str:
        now, total = progress.now, progress.total
        words = f"{progress.documents:,} documents"
        if total:
            words = (
                f"{progress.documents:,} of {total:,} documents ({progress.documents / total:.0%})"
            )
        rate = now.tokens / max(seconds, 1e-9)
        words = f"{words}, {human(now.tokens)} tokens, {human(rate)} tokens/s"
        if total is not None and now.documents:
            left = (total - progress.documents) * seconds / now.documents
            words = f"{words}, {clock(left)} left"
        return words
