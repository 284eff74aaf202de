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


def bubble(order: Order, stages: int) -> float:
    """Return the fraction of the step in which ranks wait for each other, averaged over ranks."""
    finished: dict[Action, float] = {}
    clock = [0.0] * len(order)
    position = [0] * len(order)
    left = sum(len(actions) for actions in order)
    while left:
        before = left
        for rank, actions in enumerate(order):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                ready = _ready(action, finished, stages)
                if ready is None:
                    break
                clock[rank] = max(clock[rank], ready) + COST[action.kind]
                finished[action] = clock[rank]
                position[rank] += 1
                left -= 1
        if left == before:
            raise ValueError("the schedule has a cyclic dependency")
    busy = sum(COST[action.kind] for actions in order for action in actions)
    return 1.0 - busy / (max(clock) * len(order))


def _ready(action: Action, finished: dict[Action, float], stages: int) -> float | None:
    """Return when the inputs of ``action`` are ready, or None if they are not computed yet."""
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
    times = [finished.get(need) for need in needs]
    if any(time is None for time in times):
        return None
    return max((time for time in times if time is not None), default=0.0)


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
