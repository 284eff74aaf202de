"""Repair pipeline stages under sequence parallelism, and schedules without a backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.pipelining.schedules import (
    FORWARD,
    OVERLAP_F_B,
    RECV_F,
    RESHARD,
    SEND_F,
    UNSHARD,
    WAIT_SEND_F,
    _Action,
)

_FORWARD = (FORWARD, SEND_F, RECV_F, WAIT_SEND_F, UNSHARD, RESHARD)


def send_contiguous(stage: torch.nn.Module) -> None:
    """Make a stage's sends contiguous: its output, and its input's gradient.

    Sequence parallelism leaves both strided along the batch, and point-to-point sends refuse that
    as soon as a micro-batch holds two sequences (torch 2.15, torchtitan 0.3.0).
    """
    stage.register_forward_pre_hook(_contiguous_gradient)
    stage.register_forward_hook(_contiguous_output)


def _contiguous_output(_stage: Any, _inputs: Any, output: Any) -> Any:
    return output.contiguous() if isinstance(output, torch.Tensor) else output


def _contiguous_gradient(_stage: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    first = inputs[0] if inputs else None
    if not isinstance(first, torch.Tensor) or not first.requires_grad:
        return inputs
    # A view, since the hook belongs to this call and not to the schedule's tensor.
    view = first.view_as(first)
    view.register_hook(torch.Tensor.contiguous)
    return (view, *inputs[1:])


@contextmanager
def forward_only(schedule: Any) -> Iterator[None]:
    """Leave the backward actions out of a schedule, for its ``eval``.

    torch performs all of them without an effect, apart from handing a gradient to a stage on the
    same rank (ZBVZeroBubble, DualPipeV), which fails (torch 2.15).
    """
    order = getattr(schedule, "pipeline_order_with_comms", None)
    if order is None:  # schedules of one stage per rank
        yield
        return
    schedule.pipeline_order_with_comms = {
        rank: _forward(actions) for rank, actions in order.items()
    }
    try:
        yield
    finally:
        schedule.pipeline_order_with_comms = order


def _forward(actions: list[_Action]) -> list[_Action]:
    each = (
        single
        for action in actions
        for single in (
            action.sub_actions or () if action.computation_type == OVERLAP_F_B else (action,)
        )
    )
    return [action for action in each if action.computation_type in _FORWARD]
