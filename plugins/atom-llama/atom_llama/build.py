"""Describe a Llama 3 model to torchtitan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.models.common import ComplexRoPE, Embedding, FlexAttention, RMSNorm
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.common.feed_forward import compute_ffn_hidden_dim
from torchtitan.models.common.param_init import depth_scaled_std, skip_param_init
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

from atom.architecture import check_reach, vocabulary
from atom.plugin import ArchitectureContext, ModelParts
from atom.titan.rotary import rotary
from atom.titan.soft_cap import output_layer
from atom_llama.config import Llama3

Initializers = dict[str, Callable]

LEFT_OUT: dict[str, Any] = {
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "head_dim": None,
    "num_key_value_heads": None,
}
"""Defaults of ``LlamaConfig`` of ``transformers`` for fields missing in a ``config.json``."""


def llama3(config: Llama3, context: ArchitectureContext) -> ModelParts:
    """Return the parts of a Llama 3 model, with the initialization of torchtitan's ``llama3``."""
    vocab_size = vocabulary(config.vocab_size, context)
    check_reach(config.max_seq_len, context)
    tied = config.tie_embeddings
    model = Llama3Model.Config(
        dim=config.dim,
        vocab_size=vocab_size,
        enable_weight_tying=tied,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=config.dim,
            param_init={"weight": skip_param_init if tied else partial(nn.init.normal_, std=1.0)},
        ),
        layers=[_block(config, layer) for layer in range(config.n_layers)],
        norm=_norm(config),
        lm_head=output_layer(
            config.logit_soft_cap,
            in_features=config.dim,
            out_features=vocab_size,
            param_init=_output(config.dim),
        ),
    )
    return ModelParts(
        model=model,
        state_dict_adapter=Llama3StateDictAdapter,
        hf_config=None if config.logit_soft_cap else _hugging_face(config, model),
        hf_defaults=LEFT_OUT,
    )


def _block(config: Llama3, layer: int) -> Llama3TransformerBlock.Config:
    return Llama3TransformerBlock.Config(
        attention_norm=_norm(config),
        ffn_norm=_norm(config),
        attention=make_gqa_config(
            dim=config.dim,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            wqkv_param_init=_linear(0.02),
            wo_param_init=_linear(depth_scaled_std(0.02, layer)),
            inner_attention=FlexAttention.Config(),
            fuse_qkv=True,
            rope=rotary(
                ComplexRoPE,
                config,
                dim=config.dim // config.n_heads,
                max_seq_len=config.max_seq_len,
                theta=config.rope_theta,
            ),
        ),
        feed_forward=make_ffn_config(
            dim=config.dim,
            hidden_dim=config.hidden_dim
            or compute_ffn_hidden_dim(
                config.dim,
                multiple_of=config.multiple_of,
                ffn_dim_multiplier=config.ffn_dim_multiplier,
            ),
            w1_param_init=_linear(0.02),
            w2w3_param_init=_linear(depth_scaled_std(0.02, layer)),
        ),
    )


def _hugging_face(config: Llama3, model: Llama3Model.Config) -> dict[str, Any]:
    block = model.layers[0]
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": model.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": block.feed_forward.w1.out_features,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads or config.n_heads,
        "head_dim": config.dim // config.n_heads,
        "max_position_embeddings": config.max_seq_len,
        "rope_parameters": config.rope_parameters(config.rope_theta),
        "rms_norm_eps": model.norm.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
    }


def _norm(config: Llama3) -> RMSNorm.Config:
    return RMSNorm.Config(
        normalized_shape=config.dim, eps=config.norm_eps, param_init={"weight": nn.init.ones_}
    )


def _linear(std: float) -> Initializers:
    return {"weight": partial(nn.init.trunc_normal_, std=std), "bias": nn.init.zeros_}


def _output(dim: int) -> Initializers:
    std = dim**-0.5
    return {
        "weight": partial(nn.init.trunc_normal_, std=std, a=-3 * std, b=3 * std),
        "bias": nn.init.zeros_,
    }
