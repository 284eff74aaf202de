"""Return the order of actions of torch's pipeline schedules, for plans."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.pipelining.schedules import (
    PipelineScheduleSingle,
    ScheduleDualPipeV,
    ScheduleZBVZeroBubble,
    get_schedule_class,
)

from atom.plan.pipeline import Action, Order

_KINDS = {
    "FORWARD": "F",
    "FULL_BACKWARD": "B",
    "BACKWARD_INPUT": "I",
    "BACKWARD_WEIGHT": "W",
}


def stages_of(name: str, ranks: int, stages: int) -> tuple[tuple[int, ...], ...]:
    """Return the stages of each rank under the schedule ``name``."""
    schedule = get_schedule_class(name)
    if schedule in (ScheduleZBVZeroBubble, ScheduleDualPipeV):
        return tuple((rank, stages - 1 - rank) for rank in range(ranks))
    return tuple(tuple(range(rank, stages, ranks)) for rank in range(ranks))


@lru_cache(maxsize=256)
def order(name: str, ranks: int, stages: int, microbatches: int) -> Order:
    """Return the actions of each rank under the schedule ``name``, in torch's order.

    Raises:
        ValueError: the schedule does not support this number of stages or micro-batches.
    """
    schedule: Any = get_schedule_class(name)
    first = stages_of(name, ranks, stages)[0]
    stand_ins: list[Any] = [
        SimpleNamespace(
            stage_index=stage,
            num_stages=stages,
            group_size=ranks,
            group_rank=0,
            is_first=stage == 0,
            is_last=stage == stages - 1,
            group=None,
            has_backward=True,
            submod=None,
            device=torch.device("cpu"),
            stage_index_to_group_rank=None,
        )
        for stage in first
    ]
    if issubclass(schedule, PipelineScheduleSingle):
        ordered = schedule(stand_ins[0], n_microbatches=microbatches).pipeline_order
        # torch 2.15 misnumbers the last rank's forward passes of 1F1B; their order is right.
        return tuple(_numbered(_flat(ordered[rank])) for rank in range(ranks))
    ordered = _alone(schedule)(stand_ins, microbatches, loss_fn=lambda *_: 0).pipeline_order
    return tuple(_flat(ordered[rank]) for rank in range(ranks))


@lru_cache(maxsize=16)
def _alone(schedule: type) -> Any:
    """Return ``schedule`` without sends in its order, which would take most of a plan's time."""
    return type(schedule.__name__, (schedule,), {"_prepare_schedule_with_comms": _nothing})


def _nothing(*_: Any, **__: Any) -> None:
    """Add nothing."""


def _flat(ordered: Any) -> tuple[Action, ...]:
    return tuple(action for work in ordered if work is not None for action in _actions(work))


def _numbered(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    counts: dict[str, int] = {}
    numbered = []
    for action in actions:
        number = counts.get(action.kind, 0)
        counts[action.kind] = number + 1
        numbered.append(replace(action, microbatch=number))
    return tuple(numbered)


def _actions(work: Any) -> list[Action]:
    if work.sub_actions:
        return [action for sub in work.sub_actions for action in _actions(sub)]
    kind = _KINDS.get(work.computation_type.name)
    if kind is None:
        return []
    return [Action(work.stage_index, kind, work.microbatch_index)]
