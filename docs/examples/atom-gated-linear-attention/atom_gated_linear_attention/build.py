"""From the parameters to a description of the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.models.common import Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import make_ffn_config
from torchtitan.models.common.param_init import depth_scaled_std

from atom.plugin import ArchitectureContext, ModelParts
from atom_gated_linear_attention import config as parameters
from atom_gated_linear_attention.model import (
    Block,
    GatedLinearAttention,
    GatedLinearAttentionModel,
    Recurrence,
)


def build(config: parameters.GatedLinearAttention, context: ArchitectureContext) -> ModelParts:
    """Return the parts of a model for the tokenizer's vocabulary. Any sequence length goes."""
    model = GatedLinearAttentionModel.Config(
        dim=config.dim,
        vocab_size=context.vocab_size,
        tok_embeddings=Embedding.Config(
            num_embeddings=context.vocab_size,
            embedding_dim=config.dim,
            param_init={"weight": partial(nn.init.normal_, std=1.0)},
        ),
        layers=[_block(config, layer) for layer in range(config.n_layers)],
        norm=_norm(config.dim),
        # Small logits: training starts at a loss of about ln(vocabulary).
        lm_head=_linear(config.dim, context.vocab_size),
    )
    return ModelParts(model=model)


def _block(config: parameters.GatedLinearAttention, layer: int) -> Block.Config:
    # What adds to the residual stream starts the smaller, the deeper it is.
    std_out = depth_scaled_std(0.02, layer)
    return Block.Config(
        attention_norm=_norm(config.dim),
        linear_attention=GatedLinearAttention.Config(
            n_heads=config.n_heads,
            gate_temperature=config.gate_temperature,
            wq=_linear(config.dim, config.key_dim),
            wk=_linear(config.dim, config.key_dim),
            wv=_linear(config.dim, config.value_dim),
            gate_down=_linear(config.dim, config.gate_rank),
            gate_up=_linear(config.gate_rank, config.key_dim, bias=True),
            recurrence=Recurrence.Config(chunk=config.chunk),
            norm=_norm(config.value_dim // config.n_heads),
            out_gate=_linear(config.dim, config.value_dim),
            wo=_linear(config.value_dim, config.dim, std=std_out),
        ),
        ffn_norm=_norm(config.dim),
        feed_forward=make_ffn_config(
            dim=config.dim,
            hidden_dim=config.ffn_dim,
            w1_param_init=_init(0.02),
            w2w3_param_init=_init(std_out),
        ),
    )


def _norm(width: int) -> RMSNorm.Config:
    return RMSNorm.Config(normalized_shape=width, param_init={"weight": nn.init.ones_})


def _linear(
    in_features: int, out_features: int, *, std: float = 0.02, bias: bool = False
) -> Linear.Config:
    return Linear.Config(
        in_features=in_features, out_features=out_features, bias=bias, param_init=_init(std)
    )


def _init(std: float) -> dict[str, Any]:
    # ATOM draws each parameter whole from the seed and its name, so that no layout changes it.
    return {"weight": partial(nn.init.trunc_normal_, std=std), "bias": nn.init.zeros_}
