"""Override torchtitan's loss with Apple's cut cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.config.override import derive, override

from atom_kernels_adapters import cut_functions as functions
from atom_kernels_adapters.losses import LossOfHidden


class CutLinearCrossEntropyLoss(LossOfHidden):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfHidden.Config):
        pass

    summed = staticmethod(functions.linear_cross_entropy)


@override(target=ChunkedLossWrapper.Config, exact=True, description="cut cross-entropy")
def cut_linear_cross_entropy(node: ChunkedLossWrapper.Config) -> CutLinearCrossEntropyLoss.Config:
    return derive(node, CutLinearCrossEntropyLoss.Config)
