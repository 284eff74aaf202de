"""The losses, as overrides of torchtitan's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.config.override import derive, override

from atom_kernels_triton.cross_entropy import cross_entropy, linear_cross_entropy

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


class TritonCrossEntropyLoss(CrossEntropyLoss):
    """Cross-entropy of logits, whose place their gradient takes."""

    @dataclass(kw_only=True, slots=True)
    class Config(CrossEntropyLoss.Config):
        pass

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **_unused: Any,
    ) -> Loss:
        _check(pred)
        scale = _scale(global_valid_tokens, pred)
        return cross_entropy(pred.flatten(0, 1), labels.flatten(), scale), {}


class TritonLinearCrossEntropyLoss(ChunkedLossWrapper):
    """Output layer and loss as one, in pieces of its own choice.

    The computation takes the place of the output layer's ``forward`` for one call, so that whatever
    is hooked to that layer (FSDP gathers its weight and reduces its gradient) does its work.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        pass

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **_unused: Any,
    ) -> Loss:
        _check(pred)
        head: Any = self.lm_head
        assert head is not None, "set_lm_head comes first"
        if getattr(head, "bias", None) is not None:
            raise ValueError("the kernel's output layer has no bias")
        scale = _scale(global_valid_tokens, pred)

        def fused(x_BLD: torch.Tensor) -> torch.Tensor:
            x_RD = x_BLD.flatten(0, 1)
            if torch.is_autocast_enabled(x_BLD.device.type):
                x_RD = x_RD.to(torch.get_autocast_dtype(x_BLD.device.type))
            return linear_cross_entropy(x_RD, head.weight, labels.flatten(), scale)

        with _forward_of(head, fused):
            loss: torch.Tensor = head(pred)
        return loss, {}


class _forward_of:  # noqa: N801  reads as a function
    """Let a module compute something else, hooks and all, for a while."""

    def __init__(self, module: Any, forward: Callable[..., torch.Tensor]) -> None:
        self._module, self._forward = module, forward

    def __enter__(self) -> None:
        self._before = vars(self._module).get("forward")
        self._module.forward = self._forward

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del self._module.forward
        else:
            self._module.forward = self._before


def _check(pred: torch.Tensor) -> None:
    if isinstance(pred, DTensor):
        raise TypeError("the kernel takes plain tensors: no tensor parallelism, no full DTensors")


def _scale(tokens: torch.Tensor | float | None, like: torch.Tensor) -> torch.Tensor | None:
    if tokens is None:
        return None
    return 1.0 / torch.as_tensor(tokens, dtype=torch.float32, device=like.device)


@override(target=CrossEntropyLoss.Config, exact=True, description="cross-entropy in Triton")
def triton_cross_entropy(node: CrossEntropyLoss.Config) -> TritonCrossEntropyLoss.Config:
    return derive(node, TritonCrossEntropyLoss.Config)


@override(target=ChunkedLossWrapper.Config, exact=True, description="output layer and loss in one")
def triton_linear_cross_entropy(
    node: ChunkedLossWrapper.Config,
) -> TritonLinearCrossEntropyLoss.Config:
    return derive(node, TritonLinearCrossEntropyLoss.Config)
