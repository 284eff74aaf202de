"""Use torchtitan's matrix products that overlap TP collectives, in symmetric memory.

These nodes differ from the usual ones and have other shardings, so they replace them before the
model's shardings are set. See ``torchtitan.models.common.dist_gemm``.
"""

from __future__ import annotations

from typing import Any

from torchtitan.config.override import derive, override
from torchtitan.models.common.attention import FusedQKVLinear, GQAttention
from torchtitan.models.common.dist_gemm import (
    AllGatherFusedFeedForward,
    AllGatherFusedQKVLinear,
    RowParallelLinear,
)
from torchtitan.models.common.feed_forward import FeedForward

from atom.errors import UserError


@override(
    target=GQAttention.Config, fqns=["*layers.*.attention"], description="dist_gemm of attention"
)
def attention_projections(node: GQAttention.Config) -> Any:
    if not isinstance(node.qkv_linear, FusedQKVLinear.Config):
        raise UserError(
            "needs one product for queries, keys and values, and this model has three",
            valid="reference",
            key="kernels.attention_projections",
            value="dist_gemm",
        )
    return derive(
        node,
        type(node),
        qkv_linear=derive(node.qkv_linear, AllGatherFusedQKVLinear.Config),
        wo=derive(node.wo, RowParallelLinear.Config),
    )


@override(
    target=FeedForward.Config,
    exact=True,
    fqns=["*layers.*.feed_forward"],
    description="dist_gemm of a feed-forward",
)
def feed_forward(node: FeedForward.Config) -> AllGatherFusedFeedForward.Config:
    return derive(node, AllGatherFusedFeedForward.Config)
