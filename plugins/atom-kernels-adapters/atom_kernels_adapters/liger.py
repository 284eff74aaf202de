"""Liger-Kernel's RMSNorm, RoPE, SwiGLU and losses, as overrides of torchtitan's nodes.

Liger writes over what it is given wherever it can: backward passes over the gradient that comes in,
RoPE over q and k. What torchtitan, or activation checkpointing, may need again is copied here.

Suffixes: B sequences, L tokens a sequence, N heads, H width of a head; R rows (tokens), D width of
the model, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
from liger_kernel.ops.rms_norm import LigerRMSNormFunction
from liger_kernel.ops.rope import LigerRopeFunction
from liger_kernel.ops.swiglu import LigerSiLUMulFunction
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.config.override import derive, override
from torchtitan.models.common import CosSinRoPE, FeedForward, RMSNorm

from atom.sharded import local, local_weight, placed
from atom_kernels_adapters.losses import LossOfHidden, LossOfLogits

_IN_FLOAT32 = "gemma"
"""Liger's name for a norm that is computed in float32 and rounded once, as torch's is."""


class LigerRMSNorm(RMSNorm):
    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = None if self.weight is None else local_weight(self.weight, x)
        # in_place=False: a gradient may be another branch's, too, as behind a residual add.
        y = LigerRMSNormFunction.apply(local(x), weight, self.eps, 0.0, _IN_FLOAT32, False)
        return placed(y, x)


class LigerRoPEHalves(CosSinRoPE):
    @dataclass(kw_only=True, slots=True)
    class Config(CosSinRoPE.Config):
        pass

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cache = local(self.cache)  # (positions, 2H) in float32: cosines before sines
        rows = cache[None, : query.shape[1]] if positions is None else cache[local(positions)]
        cos, sin = rows.chunk(2, dim=-1)  # (1 or B, L, H)
        # Copies: activation checkpointing may keep q and k, and rotate them again.
        q_BNLH, k_BNLH = (
            local(each).clone(memory_format=torch.contiguous_format).transpose(1, 2)
            for each in (query, key)
        )
        q_BNLH, k_BNLH = LigerRopeFunction.apply(q_BNLH, k_BNLH, cos, sin)
        return placed(q_BNLH.transpose(1, 2), query), placed(k_BNLH.transpose(1, 2), key)


class LigerFeedForward(FeedForward):
    @dataclass(kw_only=True, slots=True)
    class Config(FeedForward.Config):
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.w1(x), self.w3(x)
        product = LigerSiLUMulFunction.apply(local(gate), local(up))
        out: torch.Tensor = self.w2(placed(product, gate))
        return out


class LigerCrossEntropyLoss(LossOfLogits):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfLogits.Config):
        pass

    @staticmethod
    def summed(logits_RV: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        # In float32, as torchtitan's: Liger rounds each token's loss to the dtype of the logits.
        found: torch.Tensor = LigerCrossEntropyFunction.apply(
            logits_RV.float(), labels_R, None, IGNORE_INDEX, 0.0, 0.0, "sum"
        )[0]
        return found


class LigerLinearCrossEntropyLoss(LossOfHidden):
    @dataclass(kw_only=True, slots=True)
    class Config(LossOfHidden.Config):
        pass

    @staticmethod
    def summed(x_RD: torch.Tensor, weight_VD: torch.Tensor, labels_R: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = LigerFusedLinearCrossEntropyFunction.apply(
            x_RD,
            weight_VD,
            labels_R,
            None,  # bias
            None,  # weights of classes
            IGNORE_INDEX,
            0.0,  # z loss
            0.0,  # label smoothing
            "sum",
            None,  # soft cap
            False,  # the z loss beside the loss
            torch.float32,  # that the weight's gradient is summed in
        )[0]
        return found


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
