"""Compute the cost of a pipeline schedule: idle time, and micro-batches in flight.

Both follow from the order of actions in torch's own schedules
(:mod:`atom.titan.planning.schedule`), for every schedule alike. For the schedules of Narayanan et
al. (2021, https://arxiv.org/abs/2104.04473, section 2.2) this yields their closed forms, such as
(p - 1) / (v m + p - 1) of the time idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FORWARD, BACKWARD, INPUT, WEIGHT = "F", "B", "I", "W"
"""The forward pass, the full backward pass, and its halves: gradients of inputs and of weights.

The halves follow Qi et al., 2023, zero bubble pipeline parallelism,
https://arxiv.org/abs/2401.10241.
"""

COST = {FORWARD: 1.0, BACKWARD: 2.0, INPUT: 1.0, WEIGHT: 1.0}
"""Time of one action on one stage, in units of a forward pass."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a rank, on one stage and one micro-batch."""

    stage: int
    kind: str
    microbatch: int


Order = Sequence[Sequence[Action]]
"""The actions of each rank, in order."""


class Schedule:
    """The actions of each rank, and one order in which all of them can be computed.

    Raises:
        ValueError: actions wait for each other.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        stages = 1 + max(action.stage for actions in order for action in actions)
        finished: dict[Action, int] = {}
        position = [0] * len(order)
        left = sum(len(actions) for actions in order)
        steps: list[tuple[int, int, str, tuple[int, ...], int]] = []
        while left:
            before = left
            for rank, actions in enumerate(order):
                while position[rank] < len(actions):
                    action = actions[position[rank]]
                    needs = _needs(action, finished, stages)
                    if needs is None:
                        break
                    here = tuple(i for i, stage in needs if stage == action.stage)
                    sent = next((i for i, stage in needs if stage != action.stage), -1)
                    steps.append((rank, action.stage, action.kind, here, sent))
                    finished[action] = len(finished)
                    position[rank] += 1
                    left -= 1
            if left == before:
                raise ValueError("the schedule has a cyclic dependency")
        self.steps = steps

    def duration(self, times: Sequence[tuple[float, float]], send: float = 0.0) -> float:
        """Return the time from the first action to the end of the last.

        Args:
            times: of each stage, a micro-batch's forward and backward pass. The halves of a
                backward pass take half of it each.
            send: time from the end of an action until its result is on the next stage's rank.
        """
        cost = {FORWARD: [f for f, _ in times], BACKWARD: [b for _, b in times]}
        cost[INPUT] = cost[WEIGHT] = [b / 2 for _, b in times]
        clock = [0.0] * len(self.order)
        ends: list[float] = []
        for rank, stage, kind, here, sent in self.steps:
            start = clock[rank]
            for need in here:
                start = max(start, ends[need])
            if sent >= 0:
                start = max(start, ends[sent] + send)
            clock[rank] = start + cost[kind][stage]
            ends.append(clock[rank])
        return max(clock)


def bubble(order: Order, stages: int) -> float:
    """Return the fraction of the step in which ranks wait for each other, averaged over ranks."""
    unit = [(COST[FORWARD], COST[BACKWARD])] * stages
    busy = sum(COST[action.kind] for actions in order for action in actions)
    return 1.0 - busy / (Schedule(order).duration(unit) * len(order))


def _needs(
    action: Action, finished: dict[Action, int], stages: int
) -> list[tuple[int, int]] | None:
    """Return the actions that ``action`` needs, by number and stage; None if one is to come."""
    stage, microbatch = action.stage, action.microbatch
    if action.kind == FORWARD:
        needs = [Action(stage - 1, FORWARD, microbatch)] if stage > 0 else []
    elif action.kind == WEIGHT:
        needs = [Action(stage, INPUT, microbatch)]
    else:
        needs = [Action(stage, FORWARD, microbatch)]
        if stage < stages - 1:
            whole = Action(stage + 1, BACKWARD, microbatch)
            half = Action(stage + 1, INPUT, microbatch)
            needs.append(half if half in finished else whole)
    if any(need not in finished for need in needs):
        return None
    return [(finished[need], need.stage) for need in needs]


def in_flight(actions: Sequence[Action]) -> dict[int, int]:
    """Return, by stage, the largest number of micro-batches with live activations on a rank.

    A micro-batch is live from its forward pass until its weight gradients are computed.
    """
    held: dict[int, int] = {}
    worst: dict[int, int] = {}
    for action in actions:
        if action.kind == FORWARD:
            held[action.stage] = held.get(action.stage, 0) + 1
            if sum(held.values()) > sum(worst.values()):
                worst = dict(held)
        elif action.kind in (BACKWARD, WEIGHT):
            held[action.stage] -= 1
    return worst
