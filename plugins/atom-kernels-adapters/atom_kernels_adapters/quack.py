"""QuACK's RMSNorm and losses (CuTe DSL), as overrides of torchtitan's nodes.

Suffixes: R rows (tokens), D width of the model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from quack.cross_entropy import cross_entropy
from quack.linear_cross_entropy import chunked_linear_cross_entropy
from quack.rmsnorm import rmsnorm
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.config.override import derive, override
from torchtitan.models.common import RMSNorm

from atom.sharded import local, local_weight, placed
from atom_kernels_adapters.losses import LossOfHidden, LossOfLogits

_ALIGNED_ROWS = 8
"""TMA takes rows in multiples of 16 bytes, and so QuACK wants tokens in multiples of this."""


class QuackRMSNorm(RMSNorm):
    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else local_weight(self.weight, x)
        return placed(rmsnorm(local(x), weight, eps=self.eps), x)


class QuackCrossEntropyLoss(LossOfLogits):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfLogits.Config):
        pass

    @staticmethod
    def summed(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = cross_entropy(
            logits_RV.contiguous(), labels_R, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return found


class QuackLinearCrossEntropyLoss(LossOfHidden):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfHidden.Config):
        pass

    @staticmethod
    def summed(x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        if missing := -x_RD.shape[0] % _ALIGNED_ROWS:
            x_RD = F.pad(x_RD, (0, 0, 0, missing))
            labels_R = F.pad(labels_R, (0, missing), value=IGNORE_INDEX)
        found: torch.Tensor = chunked_linear_cross_entropy(
            x_RD.contiguous(), weight_VD, labels_R, ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return found


@override(target=RMSNorm.Config, exact=True, description="QuACK's RMSNorm")
def quack_rms_norm(node: RMSNorm.Config) -> QuackRMSNorm.Config:
    return derive(node, QuackRMSNorm.Config)


@override(target=CrossEntropyLoss.Config, exact=True, description="QuACK's cross-entropy")
def quack_cross_entropy(node: CrossEntropyLoss.Config) -> QuackCrossEntropyLoss.Config:
    return derive(node, QuackCrossEntropyLoss.Config)


@override(target=ChunkedLossWrapper.Config, exact=True, description="QuACK's linear cross-entropy")
def quack_linear_cross_entropy(
    node: ChunkedLossWrapper.Config,
) -> QuackLinearCrossEntropyLoss.Config:
    return derive(node, QuackLinearCrossEntropyLoss.Config)
