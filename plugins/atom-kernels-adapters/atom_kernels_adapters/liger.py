"""Override torchtitan's nodes with Liger-Kernel's RMSNorm, RoPE, SwiGLU and losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.config.override import derive, override
from torchtitan.models.common import CosSinRoPE, FeedForward, RMSNorm

from atom.kernels.sharded import local, local_weight, placed
from atom_kernels_adapters import liger_functions as functions
from atom_kernels_adapters.losses import LossOfHidden, LossOfLogits


class LigerRMSNorm(RMSNorm):
    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else local_weight(self.weight, x)
        return placed(functions.rms_norm(local(x), weight, self.eps), x)


class LigerRoPEHalves(CosSinRoPE):
    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        pass

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = None if positions is None else local(positions)
        q_BLNH, k_BLNH = functions.rope_halves(local(query), local(key), local(self.cache), rows)
        return placed(q_BLNH, query), placed(k_BLNH, key)


class LigerFeedForward(FeedForward):
    @dataclass(kw_only=True, slots=True)
    class Config(FeedForward.Config):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.w1(x), self.w3(x)
        product = functions.silu_mul(local(gate), local(up))
        out: torch.Tensor = self.w2(placed(product, gate))
        return out


class LigerCrossEntropyLoss(LossOfLogits):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfLogits.Config):
        pass

    summed = staticmethod(functions.cross_entropy)


class LigerLinearCrossEntropyLoss(LossOfHidden):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfHidden.Config):
        pass

    summed = staticmethod(functions.linear_cross_entropy)


@override(target=RMSNorm.Config, exact=True, description="Liger's RMSNorm")
def liger_rms_norm(node: RMSNorm.Config) -> LigerRMSNorm.Config:
    return derive(node, LigerRMSNorm.Config)


@override(target=CosSinRoPE.Config, exact=True, description="Liger's RoPE of halves")
def liger_rope_halves(node: CosSinRoPE.Config) -> LigerRoPEHalves.Config:
    return derive(node, LigerRoPEHalves.Config)


@override(target=FeedForward.Config, exact=True, description="Liger's silu(gate) · up")
def liger_feed_forward(node: FeedForward.Config) -> LigerFeedForward.Config:
    return derive(node, LigerFeedForward.Config)


@override(target=CrossEntropyLoss.Config, exact=True, description="Liger's cross-entropy")
def liger_cross_entropy(node: CrossEntropyLoss.Config) -> LigerCrossEntropyLoss.Config:
    return derive(node, LigerCrossEntropyLoss.Config)


@override(target=ChunkedLossWrapper.Config, exact=True, description="Liger's linear cross-entropy")
def liger_linear_cross_entropy(
    node: ChunkedLossWrapper.Config,
) -> LigerLinearCrossEntropyLoss.Config:
    return derive(node, LigerLinearCrossEntropyLoss.Config)
