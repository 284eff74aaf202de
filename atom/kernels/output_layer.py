"""Compute a loss inside the output layer's call, for kernels that fuse both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def refuse_split(pred: torch.Tensor) -> None:
    """Refuse logits or hidden states that are sharded over ranks.

    Raises:
        TypeError: ``pred`` is a DTensor.
    """
    if isinstance(pred, DTensor):
        raise TypeError("the kernel takes plain tensors: no tensor parallelism, no full DTensors")


def beside_product(head: nn.Module) -> str | None:
    """Return what an output layer computes besides the product with its weight, or None."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return f"the model's, {type(head).__name__}, is no plain linear layer"
    if head.bias is not None:
        return "the model's has a bias"
    if head._forward_hooks or head._forward_pre_hooks:
        return "the model's has hooks, which may change what it computes"
    return None


def through(
    head: Any,
    hidden_BLD: torch.Tensor,
    compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Return ``compute(hidden_RD, weight_VD)``, R = B L rows, computed by the output layer.

    It replaces the layer's ``forward`` for one call, so that hooks on the layer still run: FSDP's
    gather the weight and reduce its gradient. Under autocast the rows have its dtype.

    Raises:
        TypeError: the hidden states are a DTensor.
        ValueError: the layer computes more than the product with its weight.
    """
    refuse_split(hidden_BLD)
    assert head is not None, "set_lm_head comes first"
    # FSDP derives a class from the layer's, which adds hooks and keeps its forward.
    if type(head).forward is not nn.Linear.forward or head.bias is not None:
        raise ValueError(f"the kernel's output layer is plain, and {beside_product(head)}")

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
    """Replace a module's forward within the context; its hooks still run."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
