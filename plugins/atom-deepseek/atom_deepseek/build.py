"""Describe DeepSeek-V3 models to torchtitan, with the initialization of its ``deepseek_v3``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.models.common import ComplexRoPE, Embedding, RMSNorm
from torchtitan.models.common.param_init import depth_scaled_std
from torchtitan.models.deepseek_v3 import (
    DeepSeekV3Model,
    build_mla_moe_layers,
    parallelize_deepseekv3,
)
from torchtitan.models.deepseek_v3.state_dict_adapter import DeepSeekV3StateDictAdapter

from atom.architecture import check_reach, vocabulary
from atom.plugin import ArchitectureContext, ModelParts
from atom.titan.rotary import rotary
from atom.titan.soft_cap import output_layer
from atom_deepseek.config import DeepSeekV3
from atom_deepseek.mtp import PredictingLoss, PredictingModel, predicting

Initializers = dict[str, Callable]

LEFT_OUT: dict[str, Any] = {
    "rope_theta": 10_000.0,
    "rope_interleave": True,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "q_lora_rank": 1536,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "first_k_dense_replace": 3,
    # Not fields of the class, but of the published files.
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
}
"""Defaults of ``DeepseekV3Config`` of ``transformers`` for fields missing in a ``config.json``."""

NORM: Initializers = {"weight": nn.init.ones_}


def deepseek_v3(config: DeepSeekV3, context: ArchitectureContext) -> ModelParts:
    """Return the parts of a DeepSeek-V3 model."""
    check_reach(config.max_seq_len, context)
    vocab_size = vocabulary(config.vocab_size, context)
    output_std = config.dim**-0.5
    kind: Any = PredictingModel if config.mtp_depth else DeepSeekV3Model
    model = kind.Config(
        dim=config.dim,
        vocab_size=vocab_size,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=config.dim,
            param_init={"weight": partial(nn.init.normal_, std=1.0)},
        ),
        layers=_layers(config),
        norm=RMSNorm.Config(normalized_shape=config.dim, eps=config.norm_eps, param_init=NORM),
        lm_head=output_layer(
            config.logit_soft_cap,
            in_features=config.dim,
            out_features=vocab_size,
            param_init=_linear(output_std, cut=3 * output_std),
        ),
    )
    return ModelParts(
        model=model,
        state_dict_adapter=DeepSeekV3StateDictAdapter,
        hf_config=None if config.logit_soft_cap else _hugging_face(config, vocab_size),
        hf_defaults=LEFT_OUT
        | {
            # ``transformers`` computes and writes these.
            "head_dim": config.qk_rope_head_dim,
            "qk_head_dim": config.qk_nope_head_dim + config.qk_rope_head_dim,
        },
        parallelize_fn=parallelize_deepseekv3,
        post_optimizer_build_fn=register_moe_load_balancing_hook,
        loss=partial(PredictingLoss.Config, weight=config.mtp_loss_weight)
        if config.mtp_depth
        else None,
    )


def _hugging_face(config: DeepSeekV3, vocab_size: int) -> dict[str, Any] | None:
    """Return ``config.json``; None for routing that Hugging Face's model does not support."""
    if config.score_func != "sigmoid":
        return None
    return {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "first_k_dense_replace": config.n_dense_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "q_lora_rank": config.q_lora_rank,
        "kv_lora_rank": config.kv_lora_rank,
        "qk_nope_head_dim": config.qk_nope_head_dim,
        "qk_rope_head_dim": config.qk_rope_head_dim,
        "v_head_dim": config.v_head_dim,
        "intermediate_size": config.dense_hidden_dim,
        "moe_intermediate_size": config.moe_hidden_dim,
        "n_routed_experts": config.num_experts,
        "n_shared_experts": config.num_shared_experts,
        "num_experts_per_tok": config.top_k,
        "n_group": config.num_expert_groups or 1,
        "topk_group": config.num_limited_groups or 1,
        "routed_scaling_factor": config.route_scale,
        "norm_topk_prob": config.route_norm,
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": config.rope_parameters(config.rope_theta),
        "rope_interleave": True,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        **({"num_nextn_predict_layers": config.mtp_depth} if config.mtp_depth else {}),
    }


def _layers(config: DeepSeekV3) -> list[Any]:
    rope = rotary(
        ComplexRoPE,
        config,
        dim=config.qk_rope_head_dim,
        max_seq_len=config.max_seq_len,
        theta=config.rope_theta,
    )
    layers: list[Any] = build_mla_moe_layers(
        n_layers=config.n_layers,
        n_dense_layers=config.n_dense_layers,
        dim=config.dim,
        n_heads=config.n_heads,
        q_lora_rank=config.q_lora_rank or 0,
        kv_lora_rank=config.kv_lora_rank,
        qk_nope_head_dim=config.qk_nope_head_dim,
        qk_rope_head_dim=config.qk_rope_head_dim,
        v_head_dim=config.v_head_dim,
        mscale=config.mscale,
        dense_hidden_dim=config.dense_hidden_dim,
        moe_hidden_dim=config.moe_hidden_dim,
        num_experts=config.num_experts,
        num_shared_experts=config.num_shared_experts,
        router_top_k=config.top_k,
        router_score_func=config.score_func,
        router_num_expert_groups=config.num_expert_groups,
        router_num_limited_groups=config.num_limited_groups,
        router_route_scale=config.route_scale,
        router_route_norm=config.route_norm,
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        linear_init=_linear(0.02),
        norm_init=NORM,
        depth_init=lambda layer: _linear(depth_scaled_std(0.02, layer)),
        depth_experts_init=_experts,
        rope=rope,
    )
    for layer in layers:
        attention = layer.attention
        for norm in (attention.q_norm, attention.kv_norm, layer.attention_norm, layer.ffn_norm):
            norm.eps = config.norm_eps
        if layer.moe is not None:
            layer.moe.load_balance_coeff = config.load_balance_coeff
    linear = _linear(0.02)
    ahead = (
        predicting(layers[-1], config.dim, config.norm_eps, linear, NORM)
        for _ in range(config.mtp_depth)
    )
    return [*layers, *ahead]


def _linear(std: float, cut: float = 2.0) -> Initializers:
    """Return an initializer from a normal distribution, truncated at ``cut``."""
    weight = partial(nn.init.trunc_normal_, std=std, a=-cut, b=cut)
    return {"weight": weight, "bias": nn.init.zeros_}


def _experts(layer: int) -> Initializers:
    depth = partial(nn.init.trunc_normal_, std=depth_scaled_std(0.02, layer))
    return {"w1_EFD": partial(nn.init.trunc_normal_, std=0.02), "w2_EDF": depth, "w3_EFD": depth}
