"""Apple's cut cross-entropy, as an override of torchtitan's loss.

Suffixes: R rows (tokens), D width of the model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from cut_cross_entropy import linear_cross_entropy
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper
from torchtitan.config.override import derive, override

from atom_kernels_adapters.losses import LossOfHidden


class CutLinearCrossEntropyLoss(LossOfHidden):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfHidden.Config):
        pass

    @staticmethod
    def summed(x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(
            x_RD, weight_VD, labels_R, ignore_index=IGNORE_INDEX, reduction="sum"
        )


@override(target=ChunkedLossWrapper.Config, exact=True, description="cut cross-entropy")
def cut_linear_cross_entropy(node: ChunkedLossWrapper.Config) -> CutLinearCrossEntropyLoss.Config:
    return derive(node, CutLinearCrossEntropyLoss.Config)
