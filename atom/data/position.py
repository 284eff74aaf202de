"""Tell which data a step of a run was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_RESUMED, _FAULT, _BRANCHED = "resumed", "numerical_fault", "branched"

LeftOut = tuple[int, int]
"""The checkpoint that a run has gone back to, and the global batches that it left out."""


def data_step(step: int, events: Iterable[Mapping[str, Any]]) -> int:
    """Return the number, from 0, of the global batch that ``step`` was trained on last.

    It is ``step`` - 1 unless the run has gone back to a checkpoint and left out the data since.

    Args:
        step: a step of the run, from 1.
        events: the run's events, in order.
    """
    return step - 1 + sum(count for checkpoint, count in left_out(events) if checkpoint < step)


def sequences_before(
    step: int, events: Iterable[Mapping[str, Any]], sequences: Callable[[int], int]
) -> int:
    """Return how many sequences were read before those that ``step`` was trained on last.

    Args:
        step: a step of the run, from 1.
        events: the run's events, in order.
        sequences: returns the sequences of the first steps of the run together.
    """
    gone = (each for each in left_out(events) if each[0] < step)
    return sequences(step - 1) + sum(
        sequences(checkpoint + count) - sequences(checkpoint) for checkpoint, count in gone
    )


def left_out(events: Iterable[Mapping[str, Any]]) -> list[LeftOut]:
    """Return what a run has left out of its data, in order.

    Args:
        events: the run's events, in order.
    """
    found: list[LeftOut] = []
    before = found
    for event in events:
        if event["event"] == _RESUMED:
            # The checkpoint's own position is loaded: what was left out after it is not.
            before = found
            found = [each for each in before if each[0] < event["step"]]
        elif event["event"] == _BRANCHED:
            # An earlier version did not write what the other run has left out.
            found = [(checkpoint, count) for checkpoint, count in event.get("gone_back", ())]
        elif event["event"] == _FAULT and event.get("to_step") is not None:
            # Going back loads a checkpoint, too, and then keeps the position of before.
            batches = event.get("left_out", event["done"] + 1 - event["to_step"])
            found = [*before, (event["to_step"], batches)]
    return found
