"""Describe a Qwen3.5 text model to torchtitan, with the initialization of its ``qwen3_5``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.components.optimizer import register_moe_load_balancing_hook
from torchtitan.config import derive
from torchtitan.models.common import (
    Conv1d,
    Embedding,
    FlexAttention,
    Linear,
    SigmoidGatedFeedForward,
)
from torchtitan.models.common.config_utils import (
    make_ffn_config,
    make_moe_config,
    make_routed_experts_config,
    make_router_config,
)
from torchtitan.models.common.feed_forward import FeedForward
from torchtitan.models.common.param_init import depth_scaled_std, skip_param_init

from atom.architecture import check_reach, vocabulary
from atom.plugin import ArchitectureContext, ModelParts
from atom.titan.rotary import rotary
from atom.titan.soft_cap import output_layer
from atom_qwen3_5.config import Decoder, Qwen35, Qwen35MoE

# Import this first: it suppresses FLA's warning.
from atom_qwen3_5.model import DeltaLayer, GatedDeltaRule, Mixture, Qwen35Text  # isort: skip
from torchtitan.models.qwen3_5.model import (
    OffsetRMSNorm,
    Qwen35Attention,
    Qwen35TransformerBlock,
    RMSNormGated,
)
from torchtitan.models.qwen3_5.rope import MRoPE

from atom_qwen3_5.divided import parallelize
from atom_qwen3_5.rotary import ScaledMRoPE
from atom_qwen3_5.state_dict_adapter import (
    Qwen35MixtureStateDictAdapter,
    Qwen35TextStateDictAdapter,
)

Initializers = dict[str, Callable]

LEFT_OUT: dict[str, Any] = {
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    # Fields of the published files.
    "attn_output_gate": True,
    "mamba_ssm_dtype": "float32",
}
"""Defaults of the text configs of ``transformers`` for fields missing in a ``config.json``."""

TRUNCATED = partial(nn.init.trunc_normal_, std=0.02)
LINEAR: Initializers = {"weight": TRUNCATED}


def qwen3_5(config: Qwen35, context: ArchitectureContext) -> ModelParts:
    """Return the parts of a dense model."""
    layers = [
        _block(config, number, feed_forward=_feed_forward(config.dim, config.hidden_dim, number))
        for number in range(config.n_layers)
    ]
    model = _model(config, layers, context)
    return ModelParts(
        model=model,
        state_dict_adapter=Qwen35TextStateDictAdapter,
        hf_config=None
        if config.logit_soft_cap
        else {
            "model_type": "qwen3_5_text",
            "architectures": ["Qwen3_5ForCausalLM"],
            "intermediate_size": config.hidden_dim,
        }
        | _hugging_face(config, model.vocab_size),
        hf_defaults=LEFT_OUT,
        parallelize_fn=parallelize,
    )


def qwen3_5_moe(config: Qwen35MoE, context: ArchitectureContext) -> ModelParts:
    """Return the parts of a mixture of experts."""
    layers = [
        _block(config, number, moe=_experts(config, number)) for number in range(config.n_layers)
    ]
    model = _model(config, layers, context)
    return ModelParts(
        model=model,
        state_dict_adapter=Qwen35MixtureStateDictAdapter,
        hf_config=None
        if config.logit_soft_cap
        else {
            "model_type": "qwen3_5_moe_text",
            "architectures": ["Qwen3_5MoeForCausalLM"],
            "moe_intermediate_size": config.moe_hidden_dim,
            "shared_expert_intermediate_size": config.shared_hidden_dim,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.top_k,
        }
        | _hugging_face(config, model.vocab_size),
        hf_defaults=LEFT_OUT,
        parallelize_fn=parallelize,
        post_optimizer_build_fn=register_moe_load_balancing_hook,
    )


def _model(
    config: Decoder, layers: list[Qwen35TransformerBlock.Config], context: ArchitectureContext
) -> Qwen35Text.Config:
    check_reach(config.max_seq_len, context)
    vocab_size = vocabulary(config.vocab_size, context)
    std = config.dim**-0.5
    output = {"weight": partial(nn.init.trunc_normal_, std=std, a=-3 * std, b=3 * std)}
    embedding = skip_param_init if config.tie_embeddings else nn.init.normal_
    return Qwen35Text.Config(
        dim=config.dim,
        vocab_size=vocab_size,
        enable_weight_tying=config.tie_embeddings,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=config.dim,
            param_init={"weight": embedding},
        ),
        layers=layers,
        norm=_norm(config.dim),
        lm_head=output_layer(
            config.logit_soft_cap,
            in_features=config.dim,
            out_features=vocab_size,
            param_init=output,
        ),
    )


def _hugging_face(config: Decoder, vocab_size: int) -> dict[str, Any]:
    """Return the fields of ``config.json`` that both kinds share."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "linear_num_key_heads": config.n_key_heads,
        "linear_num_value_heads": config.n_value_heads,
        "linear_key_head_dim": config.key_head_dim,
        "linear_value_head_dim": config.value_head_dim,
        "linear_conv_kernel_dim": config.conv_kernel_size,
        "layer_types": [
            "full_attention" if _is_attention(config, number) else "linear_attention"
            for number in range(config.n_layers)
        ],
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": {
            **config.rope_parameters(config.rope_theta),
            "partial_rotary_factor": config.rotary_dim / config.head_dim,
            "mrope_interleaved": True,
            "mrope_section": _sections(config),
        },
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _is_attention(config: Decoder, number: int) -> bool:
    return (number + 1) % config.full_attention_interval == 0


def _sections(config: Decoder) -> list[int]:
    """Return the frequencies for time, height and width; text has the same position for all."""
    pairs = config.rotary_dim // 2
    return [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]


def _residual(number: int) -> Callable:
    """Return the initializer of a residual output: smaller for deeper layers."""
    return partial(nn.init.trunc_normal_, std=depth_scaled_std(0.02, number))


def _feed_forward(dim: int, hidden_dim: int, number: int) -> FeedForward.Config:
    return make_ffn_config(
        dim=dim,
        hidden_dim=hidden_dim,
        w1_param_init=LINEAR,
        w2w3_param_init={"weight": _residual(number)},
    )


def _experts(config: Qwen35MoE, number: int) -> Mixture.Config:
    shared = _feed_forward(config.dim, config.shared_hidden_dim, number)
    experts = make_moe_config(
        num_experts=config.num_experts,
        load_balance_coeff=config.load_balance_coeff,
        router=make_router_config(
            dim=config.dim,
            num_experts=config.num_experts,
            gate_param_init={"weight": _residual(number)},
            top_k=config.top_k,
            score_func="softmax",
            route_norm=True,
        ),
        routed_experts=make_routed_experts_config(
            dim=config.dim,
            hidden_dim=config.moe_hidden_dim,
            num_experts=config.num_experts,
            top_k=config.top_k,
            param_init={
                "w1_EFD": TRUNCATED,
                "w2_EDF": _residual(number),
                "w3_EFD": _residual(number),
            },
            comm_backend="standard",
        ),
        shared_experts=SigmoidGatedFeedForward.Config(
            w1=shared.w1, w2=shared.w2, w3=shared.w3, gate=_linear(config.dim, 1)
        ),
    )
    return derive(experts, Mixture.Config)


def _block(config: Decoder, number: int, **feed_forward: Any) -> Qwen35TransformerBlock.Config:
    residual: Initializers = {"weight": _residual(number)}
    attends = _is_attention(config, number)
    return Qwen35TransformerBlock.Config(
        attention=_attention(config, residual) if attends else None,
        delta_net=None if attends else _linear_layer(config, residual),
        attention_norm=_norm(config.dim),
        ffn_norm=_norm(config.dim),
        **feed_forward,
    )


def _attention(config: Decoder, residual: Initializers) -> Qwen35Attention.Config:
    heads, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return Qwen35Attention.Config(
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        rope=rotary(
            MRoPE,
            config,
            scaled=ScaledMRoPE,
            dim=config.rotary_dim,
            max_seq_len=config.max_seq_len,
            theta=config.rope_theta,
            mrope_section=_sections(config),
        ),
        wq=_linear(config.dim, 2 * heads),  # queries, and the gates of attention's output
        wk=_linear(config.dim, keys),
        wv=_linear(config.dim, keys),
        wo=_linear(heads, config.dim, residual),
        q_norm=_norm(config.head_dim),
        k_norm=_norm(config.head_dim),
        inner_attention=FlexAttention.Config(),
    )


def _linear_layer(config: Decoder, residual: Initializers) -> DeltaLayer.Config:
    keys = config.n_key_heads * config.key_head_dim
    values = config.n_value_heads * config.value_head_dim
    return DeltaLayer.Config(
        key_head_dim=config.key_head_dim,
        value_head_dim=config.value_head_dim,
        conv_kernel_size=config.conv_kernel_size,
        in_proj_q=_linear(config.dim, keys),
        in_proj_k=_linear(config.dim, keys),
        in_proj_v=_linear(config.dim, values),
        in_proj_z=_linear(config.dim, values),
        in_proj_a=_linear(config.dim, config.n_value_heads),
        in_proj_b=_linear(config.dim, config.n_value_heads),
        conv_q=_conv(config, keys),
        conv_k=_conv(config, keys),
        conv_v=_conv(config, values),
        kernel=GatedDeltaRule.Config(),
        norm=RMSNormGated.Config(
            dim=config.value_head_dim, eps=1e-6, param_init={"weight": nn.init.ones_}
        ),
        out_proj=_linear(values, config.dim, residual),
        param_init={"A_log": _decay, "dt_bias": nn.init.ones_},
    )


def _decay(parameter: nn.Parameter) -> None:
    nn.init.uniform_(parameter, 0.01, 16.0).log_()


def _linear(inputs: int, outputs: int, weights: Initializers = LINEAR) -> Linear.Config:
    return Linear.Config(in_features=inputs, out_features=outputs, param_init=weights)


def _conv(config: Decoder, channels: int) -> Conv1d.Config:
    bound = config.conv_kernel_size**-0.5  # torch's default for a convolution
    return Conv1d.Config(
        in_channels=channels,
        out_channels=channels,
        kernel_size=config.conv_kernel_size,
        groups=channels,
        bias=False,
        param_init={"weight": partial(nn.init.uniform_, a=-bound, b=bound)},
    )


def _norm(dim: int) -> OffsetRMSNorm.Config:
    return OffsetRMSNorm.Config(dim=dim, eps=1e-6, param_init={"weight": nn.init.zeros_})
