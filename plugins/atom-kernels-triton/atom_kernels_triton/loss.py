"""Override torchtitan's losses with the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.config.override import derive, override

from atom.kernels.output_layer import refuse_split, through
from atom_kernels_triton.cross_entropy import cross_entropy, linear_cross_entropy

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


class TritonCrossEntropyLoss(CrossEntropyLoss):
    """Cross-entropy of logits; the gradient overwrites the logits."""

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
        refuse_split(pred)
        scale = _scale(global_valid_tokens, pred)
        return cross_entropy(pred.flatten(0, 1), labels.flatten(), scale), {}


class TritonLinearCrossEntropyLoss(ChunkedLossWrapper):
    """Fused output layer and loss, with its own choice of chunks."""

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
        scale = _scale(global_valid_tokens, pred)
        labels_R = labels.flatten()
        return through(
            self.lm_head, pred, lambda x_RD, w_VD: linear_cross_entropy(x_RD, w_VD, labels_R, scale)
        ), {}


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
