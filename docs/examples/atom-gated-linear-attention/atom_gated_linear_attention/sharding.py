"""How tensors are sharded under tensor and sequence parallelism: by heads.

A module's ``ShardingConfig`` says where its parameters are split, how its inputs arrive and how its
outputs leave. Inputs are named as the module's ``forward`` names them. What a mesh does not have is
skipped, so one description serves every layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import spmd_types as spmd
from torchtitan.models.common.decoder_sharding import (
    colwise_config,
    dense_activation_placement,
    dense_param_placement,
    dense_sequence_parallel_placement,
    norm_config,
    rowwise_config,
    set_decoder_sharding_config,
    set_dense_ffn_sharding,
)
from torchtitan.protocols.sharding import LocalMapConfig, ShardingConfig

if TYPE_CHECKING:
    from atom_gated_linear_attention.model import GatedLinearAttention, GatedLinearAttentionModel


def set_sharding(model: GatedLinearAttentionModel.Config, *, enable_sp: bool) -> None:
    """Set the ``sharding_config`` of every module.

    Args:
        model: what to set it on.
        enable_sp: whether the residual stream is split along the sequence under tensor parallelism
            (sequence parallelism); else every rank has it whole.
    """
    set_decoder_sharding_config(model, enable_sp=enable_sp)
    residual_stream = (
        dense_sequence_parallel_placement() if enable_sp else dense_activation_placement(tp=spmd.I)
    )
    for block in model.layers:
        block.attention_norm.sharding_config = norm_config(enable_sp=enable_sp)
        block.ffn_norm.sharding_config = norm_config(enable_sp=enable_sp)
        set_dense_ffn_sharding(
            block.feed_forward, attn_x_layout=residual_stream, enable_sp=enable_sp
        )
        # The recurrence needs whole sequences: they are gathered here, once for all projections.
        block.linear_attention.sharding_config = ShardingConfig(
            in_src_shardings={"x_BLD": residual_stream},
            in_dst_shardings={"x_BLD": dense_activation_placement(tp=spmd.R)},
        )
        _set_heads(block.linear_attention, enable_sp=enable_sp)


def _set_heads(attention: GatedLinearAttention.Config, *, enable_sp: bool) -> None:
    for projection in (
        attention.wq,
        attention.wk,
        attention.wv,
        attention.gate_up,
        attention.out_gate,
    ):
        projection.sharding_config = colwise_config()
    # Too small to split: every rank has it whole.
    attention.gate_down.sharding_config = ShardingConfig(
        state_shardings={"weight": dense_param_placement(tp=spmd.R)},
        out_src_shardings=dense_activation_placement(tp=spmd.R),
    )
    heads = dense_activation_placement(tp=spmd.S(2))
    names = ("q_BLNK", "k_BLNK", "v_BLNV", "log_g_BLNK")
    attention.recurrence.sharding_config = ShardingConfig(
        in_src_shardings=dict.fromkeys(names, heads),
        in_dst_shardings=dict.fromkeys(names, heads),
        out_src_shardings=heads,
        local_map=LocalMapConfig(in_grad_placements=(heads,) * len(names)),
    )
    attention.norm.sharding_config = ShardingConfig(
        state_shardings={"weight": dense_param_placement(tp=spmd.R)},
        in_src_shardings={"input": heads},
        out_src_shardings=heads,
    )
    attention.wo.sharding_config = rowwise_config(output_sp=enable_sp)
