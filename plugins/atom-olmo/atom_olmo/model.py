"""Define OLMo 2 in torchtitan's modules (OLMo Team, 2024, https://arxiv.org/abs/2501.00656, 2.1).

It differs from Llama in two ways, both for stability:

- **reordered norm**: attention and feed-forward are normalized after, not before, so the summands
  of the residual stream have a known size: ``x + norm(attention(x))``;
- **QK-norm**: queries and keys are normalized before RoPE, over the width of all heads together
  (Qwen3 normalizes each head separately).

Shape suffixes: B = sequences, L = tokens per sequence, D = model width, N = heads, H = head width,
W = width of all heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import spmd_types as spmd
import torch
from torch.distributed.tensor import DTensor
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size
from torchtitan.models.common.attention import (
    AttentionMasksType,
    BaseAttention,
    BaseQKVLinear,
    VarlenAttention,
)
from torchtitan.models.common.decoder import Decoder, TransformerBlock
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.rope import RoPE
from torchtitan.models.utils import get_dense_model_nparams_and_flops
from torchtitan.protocols.module import Module

from atom_olmo.sharding import shard


class HeadsRMSNorm(Module):
    """RMSNorm over all heads, which tensor parallelism shards over its ranks.

    Each rank sums the squares of its own heads, and an all-reduce adds one number per token;
    gathering the heads would move W of them. Computed in float32, as OLMo's and Hugging Face's are.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        width: int
        """W, over all ranks."""
        eps: float

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.width = config.width
        self.eps = config.eps
        self.weight = torch.nn.Parameter(torch.empty(config.width))

    def forward(self, x_BLW: torch.Tensor) -> torch.Tensor:
        """Return ``x_BLW`` normalized, in its own dtype."""
        wide_BLW = x_BLW.float()
        squares_BL1 = wide_BLW.square().sum(dim=-1, keepdim=True)
        if not isinstance(x_BLW, DTensor) and spmd_mesh_size("tp") > 1:
            mesh = current_spmd_mesh()
            assert mesh is not None
            squares_BL1 = spmd.all_reduce(squares_BL1, mesh.get_group("tp"), src=spmd.P, dst=spmd.R)
        scale_BL1 = torch.rsqrt(squares_BL1 / self.width + self.eps)
        return (self.weight.float() * (wide_BLW * scale_BL1)).type_as(x_BLW)


class Olmo2Attention(BaseAttention):
    """Grouped-query attention with QK-norm over all heads."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseAttention.Config):
        n_kv_heads: int
        dim: int
        qkv_linear: BaseQKVLinear.Config
        q_norm: HeadsRMSNorm.Config
        k_norm: HeadsRMSNorm.Config
        wo: Linear.Config
        rope: RoPE.Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.enable_gqa = config.n_heads > config.n_kv_heads
        self.qkv_linear = config.qkv_linear.build()
        self.q_norm = config.q_norm.build()
        self.k_norm = config.k_norm.build()
        self.rope = config.rope.build()
        self.inner_attention = config.inner_attention.build()
        self.wo = config.wo.build()

    def forward(
        self,
        x_BLD: torch.Tensor,
        attention_masks: AttentionMasksType | None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return attention's output, shaped like ``x_BLD``."""
        q_BLNH, k_BLNH, v_BLNH = self.qkv_linear(x_BLD)
        q_BLNH = self.q_norm(q_BLNH.flatten(2)).view_as(q_BLNH)
        k_BLNH = self.k_norm(k_BLNH.flatten(2)).view_as(k_BLNH)
        q_BLNH, k_BLNH = self.rope(q_BLNH, k_BLNH, positions)
        out_BLNH = self.inner_attention(
            q_BLNH, k_BLNH, v_BLNH, attention_masks=attention_masks, enable_gqa=self.enable_gqa
        )
        return self.wo(out_BLNH.contiguous().flatten(2))


class Olmo2TransformerBlock(TransformerBlock):
    """A block with the reordered norm.

    The norms keep torchtitan's names: here ``attention_norm`` is applied to attention's output, and
    ``ffn_norm`` to the feed-forward's.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(TransformerBlock.Config):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.feed_forward is not None
        self.attention = config.attention.build()
        self.attention_norm = config.attention_norm.build()
        self.feed_forward = config.feed_forward.build()
        self.ffn_norm = config.ffn_norm.build()

    def forward(
        self,
        x_BLD: torch.Tensor,
        attention_masks: AttentionMasksType | None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the residual stream after this block."""
        x_BLD = x_BLD + self.attention_norm(self.attention(x_BLD, attention_masks, positions))
        return x_BLD + self.ffn_norm(self.feed_forward(x_BLD))


class Olmo2Model(Decoder):
    """The decoder."""

    @dataclass(kw_only=True, slots=True)
    class Config(Decoder.Config):
        def update_from_config(self, *, config: Any, **arguments: Any) -> None:
            """Apply the run's settings; called by torchtitan's trainer."""
            Decoder.Config.update_from_config(self, config=config, **arguments)
            inner = self.layers[0].attention.inner_attention
            if config.parallelism.context_parallel_degree > 1 and isinstance(
                inner, VarlenAttention.Config
            ):
                raise NotImplementedError("varlen attention does not work with context parallelism")
            shard(self, sequence_parallel=config.parallelism.enable_sequence_parallel)

        def get_nparams_and_flops(self, model: torch.nn.Module, seq_len: int) -> tuple[int, int]:
            """Return the number of parameters, and the training FLOPs per token."""
            attention = self.layers[0].attention
            return get_dense_model_nparams_and_flops(
                model,
                n_layers=len(self.layers),
                n_heads=attention.n_heads,
                head_dims=2 * (self.dim // attention.n_heads),
                seq_len=seq_len,
            )
