"""Adapt a function that sums the tokens' losses to torchtitan's two losses.

Suffixes: R rows (tokens), D width of the model, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss

from atom.kernels.output_layer import refuse_split, through

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


class LossOfLogits(CrossEntropyLoss):
    """Cross-entropy of logits; a kernel's subclass computes the sum."""

    @dataclass(kw_only=True, slots=True)
    class Config(CrossEntropyLoss.Config):
        pass

    @staticmethod
    @abstractmethod
    def summed(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tokens' losses, a scalar; ignore the label ``IGNORE_INDEX``."""

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **_unused: Any,
    ) -> Loss:
        refuse_split(pred)
        return _mean(self.summed(pred.flatten(0, 1), labels.flatten()), global_valid_tokens), {}


class LossOfHidden(ChunkedLossWrapper):
    """Fused output layer and cross-entropy; a kernel's subclass computes the sum."""

    @dataclass(kw_only=True, slots=True)
    class Config(ChunkedLossWrapper.Config):
        pass

    @staticmethod
    @abstractmethod
    def summed(x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tokens' losses, a scalar; ignore the label ``IGNORE_INDEX``."""

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **_unused: Any,
    ) -> Loss:
        def summed(x_RD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
            if torch.is_autocast_enabled(x_RD.device.type):
                weight_VD = weight_VD.to(x_RD.dtype)
            return self.summed(x_RD, weight_VD, labels.flatten())

        return _mean(through(self.lm_head, pred, summed), global_valid_tokens), {}


def _mean(total: torch.Tensor, tokens: torch.Tensor | float | None) -> torch.Tensor:
    total = total.float()
    return total if tokens is None else total / tokens
