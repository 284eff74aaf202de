"""torchtitan's two losses around a function that sums the tokens' losses.

Suffixes: R rows (tokens), D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


class LossOfLogits(CrossEntropyLoss):
    """Cross-entropy of logits. A kernel's class says how it is summed."""

    @dataclass(kw_only=True, slots=True)
    class Config(CrossEntropyLoss.Config):
        pass

    @staticmethod
    def summed(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tokens' losses, a scalar; those of ``IGNORE_INDEX`` count none."""
        raise NotImplementedError

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **_unused: Any,
    ) -> Loss:
        _check(pred)
        return _mean(self.summed(pred.flatten(0, 1), labels.flatten()), global_valid_tokens), {}


class LossOfHidden(ChunkedLossWrapper):
    """Output layer and cross-entropy as one. A kernel's class says how they are computed.

    The computation takes the place of the output layer's ``forward`` for one call, so that whatever
    is hooked to that layer (FSDP gathers its weight and reduces its gradient) does its work.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        pass

    @staticmethod
    def summed(x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tokens' losses, a scalar; those of ``IGNORE_INDEX`` count none."""
        raise NotImplementedError

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

        def fused(x_BLD: torch.Tensor) -> torch.Tensor:
            x_RD, weight_VD = x_BLD.flatten(0, 1), head.weight
            if torch.is_autocast_enabled(x_BLD.device.type):
                dtype = torch.get_autocast_dtype(x_BLD.device.type)
                x_RD, weight_VD = x_RD.to(dtype), weight_VD.to(dtype)
            return self.summed(x_RD, weight_VD, labels.flatten())

        with _forward_of(head, fused):
            total: torch.Tensor = head(pred)
        return _mean(total, global_valid_tokens), {}


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


def _mean(total: torch.Tensor, tokens: torch.Tensor | float | None) -> torch.Tensor:
    total = total.float()
    return total if tokens is None else total / tokens
