"""Room for Python's stack, so that no call of a training step has to get memory for its frame.

Before the fix of CPython's issue 142183 ("Calls across stack chunks perform badly"), the frames of
a thread lie in chunks of 16 KiB, and a chunk is mapped and unmapped each time that a call goes past
the end of the one before. Where a loop happens to lie at that depth, each turn of it pays for a
page fault: measured as 4 % of a training step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SLOTS = 2**16 - 2**9
"""Size of the frame, in words: just over half of a chunk of 1 MiB, with the 1,000 words that
CPython adds. What it does not use is never touched; the other half is for the frames above it."""


def call_with_room(function: Callable[[], T]) -> T:
    """Return ``function()``, which has 512 KiB for its frames and those of all that it calls."""
    return function()


# CPython gives a chunk of its own to a frame that fits in none, in powers of two; those of the
# calls inside follow it there.
call_with_room.__code__ = call_with_room.__code__.replace(co_stacksize=_SLOTS)
