"""Describe a gpt-oss model to torchtitan, with the initialization of its ``gpt_oss``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.models.common import CosSinRoPE, Embedding, FlexAttention, Linear, RMSNorm
from torchtitan.models.common.attention import FusedQKVLinear
from torchtitan.models.common.config_utils import make_token_dispatcher_config
from torchtitan.models.common.linear import ScaledBiasRowwiseLinear
from torchtitan.models.common.moe import RoutedExperts, TokenChoiceTopKRouter
from torchtitan.models.common.param_init import depth_scaled_std
from torchtitan.models.gpt_oss.model import Attention, GptOssTransformerBlock
from torchtitan.models.gpt_oss.moe import GptOssMoE
from torchtitan.models.gpt_oss.parallelize import parallelize_gptoss

from atom.architecture import check_reach, vocabulary
from atom.plugin import ArchitectureContext, ModelParts
from atom.titan.rotary import rotary
from atom.titan.soft_cap import output_layer
from atom_gpt_oss.config import GptOss
from atom_gpt_oss.experts import GptOssExperts
from atom_gpt_oss.model import GptOssDecoder
from atom_gpt_oss.state_dict_adapter import GptOssStateDictAdapter

Initializers = dict[str, Callable]

KINDS = ("sliding_attention", "full_attention")
"""Kinds of attention, in alternating order."""

LEFT_OUT: dict[str, Any] = {
    "rope_theta": 150_000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "attention_bias": True,
    "tie_word_embeddings": False,
    "sliding_window": 128,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_key_value_heads": 8,
    "num_experts_per_tok": 4,
}
"""Defaults of ``GptOssConfig`` of ``transformers`` for fields missing in a ``config.json``."""


def gpt_oss(config: GptOss, context: ArchitectureContext) -> ModelParts:
    """Return the parts of a gpt-oss model."""
    check_reach(config.max_seq_len, context)
    vocab_size = vocabulary(config.vocab_size, context)
    output_std = config.dim**-0.5
    model = GptOssDecoder.Config(
        dim=config.dim,
        vocab_size=vocab_size,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=config.dim,
            param_init={"weight": partial(nn.init.normal_, std=0.02)},
        ),
        layers=[_block(config, layer) for layer in range(config.n_layers)],
        norm=_norm(config),
        lm_head=output_layer(
            config.logit_soft_cap,
            in_features=config.dim,
            out_features=vocab_size,
            param_init={
                "weight": partial(
                    nn.init.trunc_normal_, std=output_std, a=-3 * output_std, b=3 * output_std
                ),
                "bias": nn.init.zeros_,
            },
        ),
    )
    return ModelParts(
        model=model,
        state_dict_adapter=GptOssStateDictAdapter,
        hf_config=None if config.logit_soft_cap else _hugging_face(config, model),
        hf_defaults=LEFT_OUT | {"layer_types": _kinds(config)},
        parallelize_fn=parallelize_gptoss,
        post_optimizer_build_fn=register_moe_load_balancing_hook,
    )


def _hugging_face(config: GptOss, model: GptOssDecoder.Config) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "vocab_size": model.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.moe_hidden_dim,
        "num_hidden_layers": config.n_layers,
        "layer_types": _kinds(config),
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "sliding_window": config.sliding_window,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.top_k,
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": config.rope_parameters(config.rope_theta),
        "rms_norm_eps": model.norm.eps,
        "hidden_act": "silu",
        "attention_bias": True,
        "tie_word_embeddings": False,
    }


def _kinds(config: GptOss) -> list[str]:
    return [KINDS[layer % 2] for layer in range(config.n_layers)]


def _block(config: GptOss, layer: int) -> GptOssTransformerBlock.Config:
    return GptOssTransformerBlock.Config(
        attention_norm=_norm(config),
        attention=_attention(config, layer),
        ffn_norm=_norm(config),
        moe=_experts(config, layer),
    )


def _attention(config: GptOss, layer: int) -> Attention.Config:
    weights = _weights(layer)
    return Attention.Config(
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        qkv_linear=FusedQKVLinear.Config(
            head_dim=config.head_dim,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            wqkv=Linear.Config(
                in_features=config.dim,
                out_features=(config.n_heads + 2 * config.n_kv_heads) * config.head_dim,
                bias=True,
                param_init=weights,
            ),
        ),
        wo=ScaledBiasRowwiseLinear.Config(
            in_features=config.n_heads * config.head_dim,
            out_features=config.dim,
            bias=True,
            param_init=weights,
        ),
        sliding_window_size=config.sliding_window if layer % 2 == 0 else None,
        inner_attention=FlexAttention.Config(),
        param_init={"sinks": weights["weight"]},
        rope=rotary(
            CosSinRoPE,
            config,
            dim=config.head_dim,
            max_seq_len=config.max_seq_len,
            theta=config.rope_theta,
            # torchtitan's attention multiplies the logits by the square of this.
            folded=_folded(config),
        ),
    )


def _folded(config: GptOss) -> float:
    yarn = config.scaling == "yarn"
    return 0.1 * math.log(config.rope_factor) + 1.0 if yarn else 1.0


def _experts(config: GptOss, layer: int) -> GptOssMoE.Config:
    weight = _weights(layer)["weight"]
    names = ("mlp1_weight_EGD", "mlp1_bias_EG", "mlp2_weight_EDF", "mlp2_bias_ED")
    return GptOssMoE.Config(
        num_experts=config.num_experts,
        load_balance_coeff=config.load_balance_coeff,
        router=TokenChoiceTopKRouter.Config(
            num_experts=config.num_experts,
            gate=Linear.Config(
                in_features=config.dim,
                out_features=config.num_experts,
                bias=True,
                param_init=_weights(layer),
            ),
            top_k=config.top_k,
            score_func="softmax",
            route_norm=True,
        ),
        routed_experts=RoutedExperts.Config(
            inner_experts=GptOssExperts.Config(
                dim=config.dim,
                hidden_dim=config.moe_hidden_dim,
                num_experts=config.num_experts,
                param_init=dict.fromkeys(names, weight),
            ),
            token_dispatcher=make_token_dispatcher_config(
                num_experts=config.num_experts,
                top_k=config.top_k,
                comm_backend="standard",
                hidden_dim=config.dim,
            ),
        ),
    )


def _norm(config: GptOss) -> RMSNorm.Config:
    return RMSNorm.Config(
        normalized_shape=config.dim, eps=config.norm_eps, param_init={"weight": nn.init.ones_}
    )


def _weights(layer: int) -> Initializers:
    """Return the initializers of a layer: smaller for deeper layers."""
    std = depth_scaled_std(0.02, layer)
    return {"weight": partial(nn.init.trunc_normal_, std=std), "bias": nn.init.zeros_}
