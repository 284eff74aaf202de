"""Describe Qwen3 models to torchtitan, with the initialization of its ``qwen3``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.models.common import CosSinRoPE, Embedding, FlexAttention, RMSNorm
from torchtitan.models.common.attention import GQAttention
from torchtitan.models.common.config_utils import (
    make_ffn_config,
    make_gqa_config,
    make_moe_config,
    make_routed_experts_config,
    make_router_config,
)
from torchtitan.models.common.moe import MoE
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.qwen3.model import Qwen3Model, Qwen3TransformerBlock
from torchtitan.models.qwen3.parallelize import parallelize_qwen3
from torchtitan.models.qwen3.state_dict_adapter import Qwen3StateDictAdapter

from atom.architecture import check_reach, vocabulary
from atom.plugin import ArchitectureContext, ModelParts
from atom.titan.rotary import rotary
from atom.titan.soft_cap import output_layer
from atom_qwen3.config import Decoder, Qwen3, Qwen3MoE

Initializers = dict[str, Callable]

LEFT_OUT: dict[str, Any] = {
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
}
"""Defaults of the configs of ``transformers`` for fields missing in a ``config.json``."""
LEFT_OUT_OF_DENSE = LEFT_OUT | {"head_dim": 128, "num_key_value_heads": 32, "layer_types": None}
LEFT_OUT_OF_MIXTURE = LEFT_OUT | {
    "head_dim": None,
    "num_key_value_heads": 4,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}

NORMAL = partial(nn.init.normal_, std=0.02)
LINEAR: Initializers = {"weight": NORMAL, "bias": nn.init.zeros_}


def qwen3(config: Qwen3, context: ArchitectureContext) -> ModelParts:
    """Return the parts of a dense model."""
    feed_forward = partial(
        make_ffn_config,
        dim=config.dim,
        hidden_dim=config.hidden_dim,
        w1_param_init=LINEAR,
        w2w3_param_init=LINEAR,
    )
    layers = [
        Qwen3TransformerBlock.Config(
            attention_norm=_norm(config, config.dim),
            ffn_norm=_norm(config, config.dim),
            attention=_attention(config, LINEAR),
            feed_forward=feed_forward(),
        )
        for _ in range(config.n_layers)
    ]
    model = _model(config, layers, context)
    return ModelParts(
        model=model,
        state_dict_adapter=Qwen3StateDictAdapter,
        hf_config=None
        if config.logit_soft_cap
        else {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "intermediate_size": config.hidden_dim,
        }
        | _hugging_face(config, model),
        hf_defaults=LEFT_OUT_OF_DENSE,
        parallelize_fn=parallelize_qwen3,
    )


def qwen3_moe(config: Qwen3MoE, context: ArchitectureContext) -> ModelParts:
    """Return the parts of a mixture of experts."""
    # Outputs added to the residual stream start smaller in models with more layers.
    residual = partial(nn.init.normal_, std=0.02 / (2 * config.n_layers) ** 0.5)
    layers = [
        Qwen3TransformerBlock.Config(
            attention_norm=_norm(config, config.dim),
            ffn_norm=_norm(config, config.dim),
            attention=_attention(config, LINEAR | {"weight": residual}),
            moe=_experts(config, residual),
        )
        for _ in range(config.n_layers)
    ]
    model = _model(config, layers, context)
    return ModelParts(
        model=model,
        state_dict_adapter=Qwen3StateDictAdapter,
        hf_config=None
        if config.logit_soft_cap
        else {
            "model_type": "qwen3_moe",
            "architectures": ["Qwen3MoeForCausalLM"],
            "moe_intermediate_size": config.moe_hidden_dim,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.top_k,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
        | _hugging_face(config, model),
        hf_defaults=LEFT_OUT_OF_MIXTURE,
        parallelize_fn=parallelize_qwen3,
        post_optimizer_build_fn=register_moe_load_balancing_hook,
    )


def _model(
    config: Decoder, layers: list[Qwen3TransformerBlock.Config], context: ArchitectureContext
) -> Qwen3Model.Config:
    check_reach(config.max_seq_len, context)
    vocab_size = vocabulary(config.vocab_size, context)
    return Qwen3Model.Config(
        dim=config.dim,
        vocab_size=vocab_size,
        enable_weight_tying=config.tie_embeddings,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=config.dim,
            param_init={"weight": skip_param_init if config.tie_embeddings else NORMAL},
        ),
        layers=layers,
        norm=_norm(config, config.dim),
        lm_head=output_layer(
            config.logit_soft_cap,
            in_features=config.dim,
            out_features=vocab_size,
            param_init=LINEAR,
        ),
    )


def _hugging_face(config: Decoder, model: Qwen3Model.Config) -> dict[str, Any]:
    """Return the fields of ``config.json`` that both kinds share."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": config.rope_parameters(config.rope_theta),
        "rms_norm_eps": model.norm.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _attention(config: Decoder, output: Initializers) -> GQAttention.Config:
    return make_gqa_config(
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        wqkv_param_init=LINEAR,
        wo_param_init=output,
        inner_attention=FlexAttention.Config(),
        fuse_qkv=True,
        rope=rotary(
            CosSinRoPE,
            config,
            dim=config.head_dim,
            max_seq_len=config.max_seq_len,
            theta=config.rope_theta,
        ),
        qk_norm=_norm(config, config.head_dim),
    )


def _experts(config: Qwen3MoE, residual: Callable) -> MoE.Config:
    return make_moe_config(
        num_experts=config.num_experts,
        load_balance_coeff=config.load_balance_coeff,
        router=make_router_config(
            dim=config.dim,
            num_experts=config.num_experts,
            gate_param_init=LINEAR,
            top_k=config.top_k,
            score_func="softmax",
            route_norm=True,
        ),
        routed_experts=make_routed_experts_config(
            dim=config.dim,
            hidden_dim=config.moe_hidden_dim,
            num_experts=config.num_experts,
            top_k=config.top_k,
            param_init={"w1_EFD": NORMAL, "w2_EDF": residual, "w3_EFD": NORMAL},
            comm_backend="standard",
        ),
    )


def _norm(config: Decoder, dim: int) -> RMSNorm.Config:
    return RMSNorm.Config(
        normalized_shape=dim, eps=config.norm_eps, param_init={"weight": nn.init.ones_}
    )
