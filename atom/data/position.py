"""Tell which data a step of a run was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_RESUMED, _FAULT = "resumed", "numerical_fault"


def data_step(step: int, events: Iterable[Mapping[str, Any]]) -> int:
    """Return the number, from 0, of the global batch that ``step`` was trained on last.

    It is ``step`` - 1 unless the run has gone back to a checkpoint and left out the data since.

    Args:
        step: a step of the run, from 1.
        events: the run's events, in order.
    """
    left_out: list[tuple[int, int]] = []  # (checkpoint gone back to, batches left out)
    before = left_out
    for event in events:
        if event["event"] == _RESUMED:
            # The checkpoint's own position is loaded: what was left out after it is not.
            before = left_out
            left_out = [each for each in before if each[0] < event["step"]]
        elif event["event"] == _FAULT and event.get("to_step") is not None:
            # Going back loads a checkpoint, too, and then keeps the position of before.
            batches = event.get("left_out", event["done"] + 1 - event["to_step"])
            left_out = [*before, (event["to_step"], batches)]
    return step - 1 + sum(batches for checkpoint, batches in left_out if checkpoint < step)
