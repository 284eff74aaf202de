"""Declare the shardings of OLMo 2's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import spmd_types as spmd
from torchtitan.models.common.decoder_sharding import (
    dense_activation_placement,
    dense_param_placement,
    dense_sequence_parallel_placement,
    norm_config,
    rowwise_config,
    set_decoder_sharding_config,
    set_dense_ffn_sharding,
    set_gqa_inner_attention_local_map,
    set_qkv_linear_sharding,
)
from torchtitan.protocols.sharding import ShardingConfig

if TYPE_CHECKING:
    from atom_olmo.model import Olmo2Attention, Olmo2Model


def shard(config: Olmo2Model.Config, *, sequence_parallel: bool) -> None:
    """Set ``sharding_config`` of every node. Axes that a run does not have are removed later.

    The reordered norm does not change tensor parallelism: attention and feed-forward gather the
    sequence at their start and scatter it at their end, and norms work on the scattered sequence.
    """
    set_decoder_sharding_config(config, enable_sp=sequence_parallel)
    between = (
        dense_sequence_parallel_placement()
        if sequence_parallel
        else dense_activation_placement(tp=spmd.I)
    )
    for layer in config.layers:
        layer.attention_norm.sharding_config = norm_config(enable_sp=sequence_parallel)
        layer.ffn_norm.sharding_config = norm_config(enable_sp=sequence_parallel)
        layer.attention.sharding_config = ShardingConfig(
            in_src_shardings={"x_BLD": between},
            in_dst_shardings={"x_BLD": dense_activation_placement(tp=spmd.R)},
        )
        _shard_attention(layer.attention, sequence_parallel=sequence_parallel)
        set_dense_ffn_sharding(
            layer.feed_forward, attn_x_layout=between, enable_sp=sequence_parallel
        )


def _shard_attention(config: Olmo2Attention.Config, *, sequence_parallel: bool) -> None:
    """Shard the heads, and with them the weights of their norms."""
    set_qkv_linear_sharding(config.qkv_linear)
    heads = dense_activation_placement(tp=spmd.S(2))
    for norm in (config.q_norm, config.k_norm):
        norm.sharding_config = ShardingConfig(
            state_shardings={"weight": dense_param_placement(tp=spmd.S(0))},
            in_src_shardings={"x_BLW": heads},
            out_src_shardings=heads,
        )
    config.rope.sharding_config = ShardingConfig(
        state_shardings={"cache": dense_param_placement(tp=spmd.R)}
    )
    set_gqa_inner_attention_local_map(config.inner_attention)
    config.wo.sharding_config = rowwise_config(output_sp=sequence_parallel)
