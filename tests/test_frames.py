"""Python's stack has room: at no depth of a rank does a call cost a page fault."""

from __future__ import annotations

import resource
import sys

import pytest

from atom.titan.compat.frames import call_with_room

CALLS = 200


def most_faults() -> int:
    """Return the most page faults of any loop of calls, of loops at many depths."""
    most = 0

    def leaf() -> None:
        pass

    def descend(depth: int) -> None:
        nonlocal most
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(CALLS):
            leaf()
        most = max(most, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        if depth:
            descend(depth - 1)

    descend(300)
    return most


def test_no_loop_of_a_rank_pays_for_frames() -> None:
    assert call_with_room(most_faults) < CALLS / 4


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="later releases of 3.13 keep a chunk")
def test_without_room_some_loop_does() -> None:
    """What the room is for: it may go when every Python that ATOM runs on fails this."""
    assert most_faults() >= CALLS


def test_it_returns_and_raises_what_the_function_does() -> None:
    assert call_with_room(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        call_with_room(lambda: 1 // 0)
