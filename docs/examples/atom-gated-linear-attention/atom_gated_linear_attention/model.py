"""The modules of the model. Each has a ``Config``, from which torchtitan builds it.

Shape suffixes: B sequences, L tokens, D width of the residual stream, N heads of this rank (under
tensor parallelism a rank has a part of them), K and V width of a head's keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torchtitan.models.common import Decoder, FeedForward, Linear, RMSNorm
from torchtitan.protocols.module import Module

from atom_gated_linear_attention.recurrence import continued, gated_linear_attention
from atom_gated_linear_attention.sharding import set_sharding


class Recurrence(Module):
    """The part without parameters, as a module: sharding ends at a module's inputs and outputs."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        chunk: int

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.chunk = config.chunk

    def forward(
        self,
        q_BLNK: torch.Tensor,
        k_BLNK: torch.Tensor,
        v_BLNV: torch.Tensor,
        log_g_BLNK: torch.Tensor,
        *,
        positions_BL: torch.Tensor | None,
    ) -> torch.Tensor:
        return gated_linear_attention(
            q_BLNK, k_BLNK, v_BLNV, log_g_BLNK, positions_BL, chunk=self.chunk
        )

    def with_state(
        self,
        state: tuple[torch.Tensor, ...] | None,
        *tensors: torch.Tensor,
        positions_BL: torch.Tensor | None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return ``forward`` of a document's next tokens, and the state after them: see
        "Generation" of ATOM's page on architectures."""
        before_NKV = state[0] if state else None
        out_BLNV, after_NKV = continued(*tensors, positions_BL, before_NKV, chunk=self.chunk)
        return out_BLNV, (after_NKV,)


class GatedLinearAttention(Module):
    """Projections to queries, keys, values and gates; the recurrence; a gated projection back."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        n_heads: int
        gate_temperature: float
        wq: Linear.Config
        wk: Linear.Config
        wv: Linear.Config
        gate_down: Linear.Config
        gate_up: Linear.Config
        recurrence: Recurrence.Config
        norm: RMSNorm.Config
        out_gate: Linear.Config
        wo: Linear.Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_k = config.wk.out_features // config.n_heads
        self.head_v = config.wv.out_features // config.n_heads
        self.gate_temperature = config.gate_temperature
        self.wq = config.wq.build()
        self.wk = config.wk.build()
        self.wv = config.wv.build()
        self.gate_down = config.gate_down.build()
        self.gate_up = config.gate_up.build()
        self.recurrence = config.recurrence.build()
        self.norm = config.norm.build()
        self.out_gate = config.out_gate.build()
        self.wo = config.wo.build()

    def forward(self, x_BLD: torch.Tensor, positions_BL: torch.Tensor | None) -> torch.Tensor:
        gate = self.gate_up(self.gate_down(x_BLD)).float()
        # -1, not n_heads: under tensor parallelism this rank has fewer.
        out_BLNV = self.recurrence(
            self.wq(x_BLD).unflatten(-1, (-1, self.head_k)) * self.head_k**-0.5,
            self.wk(x_BLD).unflatten(-1, (-1, self.head_k)),
            self.wv(x_BLD).unflatten(-1, (-1, self.head_v)),
            (F.logsigmoid(gate) / self.gate_temperature).unflatten(-1, (-1, self.head_k)),
            positions_BL=positions_BL,
        )
        return self.wo(self.norm(out_BLNV).flatten(2) * F.silu(self.out_gate(x_BLD)))


class Block(Module):
    """Attention, then SwiGLU, each after a norm and added to its input."""

    @dataclass(kw_only=True, slots=True)
    class Config(Module.Config):
        attention_norm: RMSNorm.Config
        # Not `attention`: torchtitan takes what has that name for softmax attention.
        linear_attention: GatedLinearAttention.Config
        ffn_norm: RMSNorm.Config
        feed_forward: FeedForward.Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = config.attention_norm.build()
        self.linear_attention = config.linear_attention.build()
        self.ffn_norm = config.ffn_norm.build()
        self.feed_forward = config.feed_forward.build()

    def forward(
        self,
        x_BLD: torch.Tensor,
        attention_masks: None,  # noqa: ARG002 (there are none without softmax attention)
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x_BLD = x_BLD + self.linear_attention(self.attention_norm(x_BLD), positions)
        return x_BLD + self.feed_forward(self.ffn_norm(x_BLD))


class GatedLinearAttentionModel(Decoder):
    """Embedding, blocks, norm and output layer: all that :class:`Decoder` has."""

    @dataclass(kw_only=True, slots=True)
    class Config(Decoder.Config):
        @property
        def first_attention(self) -> None:
            """There is no softmax attention, and so no mask to make and no RoPE to check."""
            return None

        def update_from_config(self, *, config: Any, **_: Any) -> None:
            """Refuse the layouts that this model cannot have, and set its sharding.

            Raises:
                ValueError: the heads do not divide.
                NotImplementedError: under context parallelism.
            """
            parallelism = config.parallelism
            if parallelism.context_parallel_degree > 1:
                raise NotImplementedError(
                    "gated linear attention hands its state from token to token, which context "
                    "parallelism splits; valid: parallelism.context_parallel_degree=1"
                )
            heads = self.layers[0].linear_attention.n_heads
            if heads % parallelism.tensor_parallel_degree:
                raise ValueError(
                    f"parallelism.tensor_parallel_degree={parallelism.tensor_parallel_degree} "
                    f"must divide the {heads} heads"
                )
            if self.enable_weight_tying and parallelism.pipeline_parallel_degree > 1:
                raise NotImplementedError("a pipeline cannot split tied embeddings")
            set_sharding(self, enable_sp=parallelism.enable_sequence_parallel)

        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:  # noqa: ARG002
            """Return the number of parameters, and of floating-point operations a token.

            6 a parameter that multiplies, and 12 an element of the state: it is written and read,
            2 operations each, once forward and twice backward. No term grows with ``seq_len``.
            """
            parameters = sum(p.numel() for p in model.parameters())
            embedding = self.vocab_size * self.dim
            attention = self.layers[0].linear_attention
            state = attention.wk.out_features * attention.wv.out_features // attention.n_heads
            flops = 6 * (parameters - embedding) + 12 * len(self.layers) * state
            return parameters, flops
