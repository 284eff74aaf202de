"""Reserve stack space so that no Python call in a training step allocates memory for its frame.

Before the fix of CPython's issue 142183 ("Calls across stack chunks perform badly"), a thread's
frames lie in chunks of 16 KiB. A chunk is mapped and unmapped each time that a call crosses the end
of the previous one. A loop at that depth pays a page fault per iteration: measured as 4 % of a
training step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_SLOTS = 2**16 - 2**9
"""Size of the frame, in words: just over half of a chunk of 1 MiB, CPython's 1,000 words included.

Its unused memory is never touched; the other half is for the frames above it.
"""


def call_with_room(function: Callable[[], T]) -> T:
    """Return ``function()``, called with 512 KiB of stack for it and its callees."""
    return function()


# CPython puts a frame that fits in no chunk into a new chunk. Its size is a power of two, so inner
# calls' frames follow it there.
call_with_room.__code__ = call_with_room.__code__.replace(co_stacksize=_SLOTS)
