"""The batches of a run are counted from its events: what was resumed, left out, or branched."""

from __future__ import annotations

from typing import Any

import pytest

from atom.data.position import data_step


def resumed(step: int) -> dict[str, Any]:
    return {"event": "resumed", "step": step}


def gone_back(to: int, done: int, **more: int) -> dict[str, Any]:
    return {"event": "numerical_fault", "to_step": to, "done": done, **more}


def branched(step: int, *pairs: list[int]) -> dict[str, Any]:
    return {"event": "branched", "step": step, "gone_back": list(pairs)}


@pytest.mark.parametrize(
    ("events", "steps"),
    [
        ([], {1: 0, 7: 6}),
        ([{"event": "numerical_fault", "decision": "skip"}], {7: 6}),
        # Step 7 failed, and its data is left out with that of 5 and 6.
        ([resumed(4), gone_back(4, 6)], {4: 3, 5: 7, 12: 14}),
        ([resumed(4), gone_back(4, 7, left_out=3)], {4: 3, 5: 7, 12: 14}),
        ([resumed(4), gone_back(4, 6), resumed(4), gone_back(4, 5)], {4: 3, 5: 9}),
        # A process that begins again at the checkpoint has the position saved with it.
        ([resumed(4), gone_back(4, 6), resumed(4)], {5: 4}),
        ([resumed(4), gone_back(4, 6), resumed(8)], {5: 7, 9: 11}),
        # A branch of a run that has gone back, at 8, and its own way.
        ([branched(8, [4, 2]), resumed(8), gone_back(8, 9)], {4: 3, 5: 6, 8: 9, 9: 12}),
        ([branched(8, [4, 2], [6, 1]), resumed(8)], {5: 6, 7: 9, 9: 11}),
        ([{"event": "branched", "step": 8}, resumed(8)], {9: 8}),
    ],
)
def test_the_batch_of_a_step_counts_what_was_left_out(
    events: list[dict[str, Any]], steps: dict[int, int]
) -> None:
    assert {step: data_step(step, events) for step in steps} == steps
