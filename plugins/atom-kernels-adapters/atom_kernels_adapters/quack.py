"""Override torchtitan's nodes with QuACK's RMSNorm and losses (CuTe DSL)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.config.override import derive, override
from torchtitan.models.common import RMSNorm

from atom.kernels.sharded import local, local_weight, placed
from atom_kernels_adapters import quack_functions as functions
from atom_kernels_adapters.losses import LossOfHidden, LossOfLogits


class QuackRMSNorm(RMSNorm):
    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else local_weight(self.weight, x)
        return placed(functions.rms_norm(local(x), weight, self.eps), x)


class QuackCrossEntropyLoss(LossOfLogits):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfLogits.Config):
        pass

    summed = staticmethod(functions.cross_entropy)


class QuackLinearCrossEntropyLoss(LossOfHidden):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfHidden.Config):
        pass

    summed = staticmethod(functions.linear_cross_entropy)


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
