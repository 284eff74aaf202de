"""A loss that is computed in the place of the output layer, for kernels that take both as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def refuse_split(pred: torch.Tensor) -> None:
    """Refuse logits or hidden states that are split over ranks.

    Raises:
        TypeError: ``pred`` is a DTensor.
    """
    if isinstance(pred, DTensor):
        raise TypeError("the kernel takes plain tensors: no tensor parallelism, no full DTensors")


def through(
    head: Any,
    hidden_BLD: torch.Tensor,
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return ``compute(hidden_RD, weight_VD)``, R = B L rows, computed by the output layer.

    It takes the place of the layer's ``forward`` for one call, so that whatever is hooked to that
    layer (FSDP gathers its weight and reduces its gradient) does its work. Under autocast the rows
    come in its dtype.

    Raises:
        TypeError: the hidden states are a DTensor.
        ValueError: the layer has a bias.
    """
    refuse_split(hidden_BLD)
    assert head is not None, "set_lm_head comes first"
    if getattr(head, "bias", None) is not None:
        raise ValueError("the kernel's output layer has no bias")

    def fused(x_BLD: torch.Tensor) -> torch.Tensor:
        x_RD = x_BLD.flatten(0, 1)
        if torch.is_autocast_enabled(x_BLD.device.type):
            x_RD = x_RD.to(torch.get_autocast_dtype(x_BLD.device.type))
        return compute(x_RD, head.weight)

    with _forward_of(head, fused):
        computed: torch.Tensor = head(hidden_BLD)
    return computed


@contextmanager
def _forward_of(module: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let a module compute something else, hooks and all, for a while."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
