"""Repair pipeline stages under sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch


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
