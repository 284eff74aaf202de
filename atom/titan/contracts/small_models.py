"""Build small models of torchtitan's families to test kernels in.

They differ in features that break kernels and parallelism: rotary embeddings of adjacent pairs and
of halves, and norms inside attention.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn as nn
from torchtitan.models.common import ComplexRoPE, CosSinRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.llama3 import _build_llama3_layers
from torchtitan.models.llama3.model import Llama3Model
from torchtitan.models.qwen3 import _build_qwen3_layers, _build_qwen3_moe_layers
from torchtitan.models.qwen3.model import Qwen3Model

from atom.titan.contracts.sizes import EXPERTS, TOP_K

MAX_SEQ_LEN = 1024


def llama_model(
    *,
    vocab_size: int,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 16,
    hidden_dim: int = 96,
    n_layers: int = 2,
) -> Llama3Model.Config:
    """Return a model of the given sizes; its width is heads x head width."""
    dim = n_heads * head_dim
    layers = _build_llama3_layers(
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        hidden_dim=hidden_dim,
        rope=ComplexRoPE.Config(dim=head_dim, max_seq_len=MAX_SEQ_LEN),
        attn_backend="flex",
    )
    return Llama3Model.Config(layers=layers, **_ends(dim, vocab_size))


def qwen_model(*, vocab_size: int, hidden_dim: int = 96, **sizes: int) -> Qwen3Model.Config:
    """Return a model of the given sizes; its width is heads x head width."""
    return _qwen(partial(_build_qwen3_layers, hidden_dim=hidden_dim), vocab_size, **sizes)


def mixture_model(*, vocab_size: int, hidden_dim: int = 96, **sizes: int) -> Qwen3Model.Config:
    """Return a mixture of experts of the given sizes; ``hidden_dim`` is the width of an expert."""
    layers = partial(
        _build_qwen3_moe_layers,
        moe_hidden_dim=hidden_dim,
        num_experts=EXPERTS,
        top_k=TOP_K,
        moe_comm_backend="standard",
    )
    return _qwen(layers, vocab_size, **sizes)


def _qwen(
    layers: Callable[..., list[Any]],
    vocab_size: int,
    *,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 16,
    n_layers: int = 2,
) -> Qwen3Model.Config:
    dim = n_heads * head_dim
    return Qwen3Model.Config(
        layers=layers(
            n_layers=n_layers,
            dim=dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            attn_backend="flex",
            rope=CosSinRoPE.Config(dim=head_dim, max_seq_len=MAX_SEQ_LEN),
        ),
        **_ends(dim, vocab_size),
    )


MODELS = {"llama": llama_model, "qwen": qwen_model, "mixture": mixture_model}


def _ends(dim: int, vocab_size: int) -> dict[str, Any]:
    """Return the modules before and after the layers."""
    return {
        "dim": dim,
        "vocab_size": vocab_size,
        "tok_embeddings": Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=dim,
            param_init={"weight": partial(nn.init.normal_, std=1.0)},
        ),
        "norm": RMSNorm.Config(normalized_shape=dim, param_init={"weight": nn.init.ones_}),
        "lm_head": Linear.Config(
            in_features=dim,
            out_features=vocab_size,
            param_init={"weight": partial(nn.init.normal_, std=dim**-0.5)},
        ),
    }
