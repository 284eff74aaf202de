"""Parameters of Qwen3.5 text models, as in ``Qwen3_5TextConfig`` of ``transformers``.

The linear layers are Gated DeltaNet (Yang et al., 2025, https://arxiv.org/abs/2412.06464).
"""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from atom.architecture import (
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
    SoftCap,
    check_experts,
    check_heads,
)
from atom.errors import UserError
from atom.recipe.idle import Idle
from atom.recipe.rope_scaling import SharpenedRopeScaling


class Decoder(SharpenedRopeScaling):
    """Parameters shared by dense models and mixtures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(gt=0, le=MOST_WIDTH, description="width of the residual stream")
    n_layers: int = Field(gt=0, le=MOST_LAYERS, description="blocks")
    full_attention_interval: int = Field(
        default=4,
        gt=0,
        le=MOST_WIDTH,
        description="every N-th layer is attention; the others are linear layers",
    )
    n_heads: int = Field(gt=0, le=MOST_WIDTH, description="query heads of attention")
    n_kv_heads: int = Field(gt=0, le=MOST_WIDTH, description="key and value heads of attention")
    head_dim: int = Field(
        default=256, gt=0, le=MOST_WIDTH, multiple_of=8, description="width of an attention head"
    )
    rotary_dim: int = Field(
        default=64,
        gt=0,
        le=MOST_WIDTH,
        multiple_of=2,
        description="part of head_dim that RoPE rotates",
    )
    n_key_heads: Annotated[int, Idle("full_attention_interval", 1)] = Field(
        default=16, gt=0, le=MOST_WIDTH, description="query and key heads of linear layers"
    )
    n_value_heads: Annotated[int, Idle("full_attention_interval", 1)] = Field(
        gt=0, le=MOST_WIDTH, description="value heads of linear layers"
    )
    key_head_dim: Annotated[int, Idle("full_attention_interval", 1)] = Field(
        default=128, gt=0, le=MOST_WIDTH, description="width of a linear layer's key head"
    )
    value_head_dim: Annotated[int, Idle("full_attention_interval", 1)] = Field(
        default=128, gt=0, le=MOST_WIDTH, description="width of a linear layer's value head"
    )
    conv_kernel_size: Annotated[int, Idle("full_attention_interval", 1)] = Field(
        default=4,
        gt=0,
        le=MOST_WIDTH,
        description="kernel size of a linear layer's convolution, in tokens",
    )
    logit_soft_cap: SoftCap = None
    vocab_size: int | None = Field(
        default=None,
        gt=0,
        le=MOST_TOKENS,
        description="rows of the embedding; null: the tokenizer's vocabulary",
    )
    tie_embeddings: bool = Field(
        default=False, description="share one weight between the embedding and the output layer"
    )
    max_seq_len: int = Field(
        default=262144,
        gt=0,
        le=MOST_TOKENS,
        description="maximum sequence length of RoPE, in tokens",
    )
    rope_theta: float = Field(default=10_000_000.0, gt=0, description="base of RoPE's frequencies")
    rope_original_seq_len: Annotated[
        int, Idle("rope_scaling", "none", "linear"), Idle("rope_factor", 1)
    ] = Field(
        default=262144, gt=0, le=MOST_TOKENS, description="original context length, in tokens"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        check_heads(self.n_heads, self.n_kv_heads)
        if self.n_value_heads % self.n_key_heads:
            raise UserError(
                f"must divide n_value_heads={self.n_value_heads}",
                key="architecture.n_key_heads",
                value=self.n_key_heads,
            )
        if self.rotary_dim > self.head_dim:
            raise UserError(
                f"must be at most head_dim={self.head_dim}",
                key="architecture.rotary_dim",
                value=self.rotary_dim,
            )
        if self.n_layers < self.full_attention_interval:
            raise UserError(
                f"leaves no layer of attention, which every {self.full_attention_interval}. layer "
                "is (full_attention_interval)",
                valid=f"at least {self.full_attention_interval}",
                key="architecture.n_layers",
                value=self.n_layers,
            )
        return self


class Qwen35(Decoder):
    """A dense model. Every field can be overridden: ``architecture.n_layers=12``."""

    hidden_dim: int = Field(gt=0, le=MOST_WIDTH, description="width of the feed-forward layer")


class Qwen35MoE(Decoder):
    """A mixture of experts: every block's feed-forward is one, with a shared expert."""

    moe_hidden_dim: int = Field(gt=0, le=MOST_WIDTH, description="width of each expert")
    shared_hidden_dim: int = Field(
        gt=0,
        le=MOST_WIDTH,
        description="width of the shared expert, which has a gate",
    )
    num_experts: int = Field(gt=0, le=MOST_WIDTH, description="experts of a layer")
    top_k: int = Field(gt=0, le=MOST_WIDTH, description="experts that a token goes to")
    load_balance_coeff: float | None = Field(
        default=1e-3,
        gt=0,
        description="step of the routing biases that balance the experts without a loss "
        "(https://arxiv.org/abs/2408.15664); null: no balancing",
    )

    @model_validator(mode="after")
    def _experts_suffice(self) -> Self:
        check_experts(self.top_k, self.num_experts)
        return self
