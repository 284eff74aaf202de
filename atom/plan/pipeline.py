"""Compute the cost of a pipeline schedule: idle time, and micro-batches in flight.

Both follow from the order of actions in torch's own schedules
(:mod:`atom.titan.planning.schedule`), for every schedule alike. For the schedules of Narayanan et
al. (2021, https://arxiv.org/abs/2104.04473, section 2.2) this yields their closed forms, such as
(p - 1) / (v m + p - 1) of the time idle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

FORWARD, BACKWARD, INPUT, WEIGHT = "F", "B", "I", "W"
"""The forward pass, the full backward pass, and its halves: gradients of inputs and of weights.

The halves follow Qi et al., 2023, zero bubble pipeline parallelism,
https://arxiv.org/abs/2401.10241.
"""

KINDS = (FORWARD, BACKWARD, INPUT, WEIGHT)
_KINDS = {kind: number for number, kind in enumerate(KINDS)}

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
        every = [action for actions in order for action in actions]
        stages = 1 + max(action.stage for action in every)
        microbatches = 1 + max(action.microbatch for action in every)
        each = stages * microbatches
        # An action's number is kind x each + stage x microbatches + microbatch.
        place = [-1] * (4 * each)
        numbered = [
            [(_KINDS[a.kind], a.stage, a.stage * microbatches + a.microbatch) for a in actions]
            for actions in order
        ]
        position = [0] * len(order)
        left = len(every)
        steps: list[tuple[int, int, str, tuple[int, ...], int]] = []
        while left:
            before = left
            for rank, actions in enumerate(numbered):
                start = position[rank]
                for kind, stage, at in itertools.islice(actions, start, None):
                    sent = -1
                    here: tuple[int, ...] = ()
                    if kind == 0:
                        if stage > 0:
                            sent = place[at - microbatches]
                            if sent < 0:
                                break
                    else:
                        mine = place[at] if kind != 3 else place[2 * each + at]
                        if mine < 0:
                            break
                        here = (mine,)
                        if kind != 3 and stage < stages - 1:
                            after = at + microbatches
                            sent = place[2 * each + after]
                            sent = sent if sent >= 0 else place[each + after]
                            if sent < 0:
                                break
                    place[kind * each + at] = len(steps)
                    steps.append((rank, stage, KINDS[kind], here, sent))
                    position[rank] += 1
                left -= position[rank] - start
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
        return max(end for rank in self.timeline(times, send) for *_, end in rank)

    def timeline(
        self, times: Sequence[tuple[float, float]], send: float = 0.0
    ) -> list[list[tuple[int, str, float, float]]]:
        """Return stage, kind, begin and end of each rank's actions, in order.

        The arguments are those of :meth:`duration`.
        """
        cost = {FORWARD: [f for f, _ in times], BACKWARD: [b for _, b in times]}
        cost[INPUT] = cost[WEIGHT] = [b / 2 for _, b in times]
        clock = [0.0] * len(self.order)
        ends: list[float] = []
        found: list[list[tuple[int, str, float, float]]] = [[] for _ in self.order]
        for rank, stage, kind, here, sent in self.steps:
            start = clock[rank]
            for need in here:
                start = max(start, ends[need])
            if sent >= 0:
                start = max(start, ends[sent] + send)
            end = start + cost[kind][stage]
            clock[rank] = end
            ends.append(end)
            found[rank].append((stage, kind, start, end))
        return found


def bubble(order: Order | Schedule, stages: int) -> float:
    """Return the fraction of the step in which ranks wait for each other, averaged over ranks."""
    schedule = order if isinstance(order, Schedule) else Schedule(order)
    unit = [(COST[FORWARD], COST[BACKWARD])] * stages
    busy = sum(COST[action.kind] for actions in schedule.order for action in actions)
    return 1.0 - busy / (schedule.duration(unit) * len(schedule.order))


def in_flight(actions: Sequence[Action]) -> dict[int, int]:
    """Return, by stage, the largest number of micro-batches with live activations on a rank.

    A micro-batch is live from its forward pass until its weight gradients are computed.
    """
    held: dict[int, int] = {}
    worst: dict[int, int] = {}
    live = most = 0
    for action in actions:
        if action.kind == FORWARD:
            held[action.stage] = held.get(action.stage, 0) + 1
            live += 1
            if live > most:
                worst, most = dict(held), live
        elif action.kind in (BACKWARD, WEIGHT):
            held[action.stage] -= 1
            live -= 1
    return worst
