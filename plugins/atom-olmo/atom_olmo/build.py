"""Describe an OLMo 2 model to torchtitan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.models.common import CosSinRoPE, Embedding, FlexAttention, RMSNorm
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.common.param_init import skip_param_init

from atom.architecture import check_reach, vocabulary
from atom.plugin import ArchitectureContext, ModelParts
from atom.titan.rotary import rotary
from atom.titan.soft_cap import output_layer
from atom_olmo.config import Olmo2
from atom_olmo.model import HeadsRMSNorm, Olmo2Attention, Olmo2Model, Olmo2TransformerBlock
from atom_olmo.state_dict_adapter import Olmo2StateDictAdapter

Initializers = dict[str, Callable]

LEFT_OUT: dict[str, Any] = {
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
}
"""Defaults of ``Olmo2Config`` of ``transformers`` for fields missing in a ``config.json``."""


def olmo2(config: Olmo2, context: ArchitectureContext) -> ModelParts:
    """Return the parts of an OLMo 2 model, with the initialization of OLMo-core's ``normal``."""
    check_reach(config.max_seq_len, context)
    vocab_size = vocabulary(config.vocab_size, context)
    weights = _weights(config)
    model = Olmo2Model.Config(
        dim=config.dim,
        vocab_size=vocab_size,
        enable_weight_tying=config.tie_embeddings,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=config.dim,
            param_init={"weight": skip_param_init} if config.tie_embeddings else weights,
        ),
        layers=[_block(config) for _ in range(config.n_layers)],
        norm=_norm(config),
        lm_head=output_layer(
            config.logit_soft_cap,
            in_features=config.dim,
            out_features=vocab_size,
            param_init=weights,
        ),
    )
    return ModelParts(
        model=model,
        state_dict_adapter=Olmo2StateDictAdapter,
        hf_config=None if config.logit_soft_cap else _hugging_face(config, vocab_size),
        hf_defaults=LEFT_OUT,
    )


def _hugging_face(config: Olmo2, vocab_size: int) -> dict[str, Any]:
    return {
        "model_type": "olmo2",
        "architectures": ["Olmo2ForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads or config.n_heads,
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": config.rope_parameters(config.rope_theta),
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _block(config: Olmo2) -> Olmo2TransformerBlock.Config:
    weights = _weights(config)
    return Olmo2TransformerBlock.Config(
        attention=_attention(config),
        attention_norm=_norm(config),
        feed_forward=make_ffn_config(
            dim=config.dim,
            hidden_dim=config.hidden_dim,
            w1_param_init=weights,
            w2w3_param_init=weights,
        ),
        ffn_norm=_norm(config),
    )


def _attention(config: Olmo2) -> Olmo2Attention.Config:
    head_dim = config.dim // config.n_heads
    n_kv_heads = config.n_kv_heads or config.n_heads
    weights = _weights(config)
    plain = make_gqa_config(
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=n_kv_heads,
        wqkv_param_init=weights,
        wo_param_init=weights,
        inner_attention=FlexAttention.Config(),
        fuse_qkv=True,
        rope=rotary(
            CosSinRoPE,
            config,
            dim=head_dim,
            max_seq_len=config.max_seq_len,
            theta=config.rope_theta,
        ),
    )
    return Olmo2Attention.Config(
        n_heads=config.n_heads,
        n_kv_heads=n_kv_heads,
        dim=config.dim,
        qkv_linear=plain.qkv_linear,
        q_norm=_heads_norm(config, config.n_heads * head_dim),
        k_norm=_heads_norm(config, n_kv_heads * head_dim),
        wo=plain.wo,
        rope=plain.rope,
        inner_attention=plain.inner_attention,
    )


def _norm(config: Olmo2) -> RMSNorm.Config:
    return RMSNorm.Config(
        normalized_shape=config.dim, eps=config.norm_eps, param_init={"weight": nn.init.ones_}
    )


def _heads_norm(config: Olmo2, width: int) -> HeadsRMSNorm.Config:
    return HeadsRMSNorm.Config(
        width=width, eps=config.norm_eps, param_init={"weight": nn.init.ones_}
    )


def _weights(config: Olmo2) -> Initializers:
    std = config.init_std
    return {"weight": partial(nn.init.trunc_normal_, std=std, a=-3 * std, b=3 * std)}
