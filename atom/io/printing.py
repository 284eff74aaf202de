"""Sanitize printed text, so that files, models and plugins cannot control the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters (including ESC), line separators, and characters that change the text
direction."""


def clean(text: str, keep: str = "") -> str:
    """Return ``text`` with each terminal control character replaced by a question mark."""
    return STEERING.sub(lambda found: found[0] if found[0] in keep else "?", text)


def escaped(text: str) -> str:
    """Return an equivalent line of JSON without terminal control characters."""
    return STEERING.sub(lambda found: "\t" if found[0] == "\t" else f"\\u{ord(found[0]):04x}", text)


class Printed:
    """A text stream that replaces terminal control characters by question marks.

    Args:
        stream: the underlying stream. ATOM's own screen writes to it directly: :func:`as_it_is`.
        keep: characters that are written unchanged.
    """

    def __init__(self, stream: IO[str], keep: str = "\n\t") -> None:
        self.below = stream
        self._keep = keep

    def write(self, text: str) -> int:
        self.below.write(clean(text.replace("\r\n", "\n"), self._keep))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name in ("below", "_keep"):  # of a copy under construction
            raise AttributeError(name)
        return getattr(self.below, name)


def with_bars(stream: IO[str]) -> IO[str]:
    """Return the stream for a library's progress bars, which use carriage returns."""
    return cast(IO[str], Printed(as_it_is(stream), keep="\n\t\r"))


def as_it_is(stream: IO[str]) -> IO[str]:
    """Return the stream for code that draws on the terminal and sanitizes its text itself."""
    return stream.below if isinstance(stream, Printed) else stream


@contextmanager
def protected() -> Iterator[None]:
    """Print through :class:`Printed` while the context is open."""
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    made = {name: cast(IO[str], Printed(stream)) for name, stream in before.items()}
    for name, stream in made.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in before.items():
            # A rank has redirected it to its log permanently.
            if getattr(sys, name) is made[name]:
                setattr(sys, name, stream)
