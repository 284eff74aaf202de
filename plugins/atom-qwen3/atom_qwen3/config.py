"""Parameters of Qwen3 models (Qwen Team, 2025, https://arxiv.org/abs/2505.09388, section 2)."""

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
from atom.recipe.idle import Idle
from atom.recipe.rope_scaling import SharpenedRopeScaling


class Decoder(SharpenedRopeScaling):
    """Parameters shared by dense models and mixtures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(gt=0, le=MOST_WIDTH, description="width of the residual stream")
    n_layers: int = Field(gt=0, le=MOST_LAYERS, description="transformer blocks")
    n_heads: int = Field(gt=0, le=MOST_WIDTH, description="query heads")
    n_kv_heads: int = Field(gt=0, le=MOST_WIDTH, description="key and value heads")
    head_dim: int = Field(
        default=128,
        gt=0,
        le=MOST_WIDTH,
        multiple_of=2,
        description="width of a head, even for RoPE",
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="added to the mean square in norms")
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
        default=40960,
        gt=0,
        le=MOST_TOKENS,
        description="maximum sequence length of RoPE, in tokens",
    )
    rope_theta: float = Field(default=1_000_000.0, gt=0, description="base of RoPE's frequencies")
    rope_original_seq_len: Annotated[
        int, Idle("rope_scaling", "none", "linear"), Idle("rope_factor", 1)
    ] = Field(default=32768, gt=0, le=MOST_TOKENS, description="original context length, in tokens")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_heads(self.n_heads, self.n_kv_heads)
        return self


class Qwen3(Decoder):
    """A dense model. Every field can be overridden: ``architecture.n_layers=12``."""

    hidden_dim: int = Field(gt=0, le=MOST_WIDTH, description="width of the feed-forward layer")


class Qwen3MoE(Decoder):
    """A mixture of experts: every block's feed-forward is one."""

    moe_hidden_dim: int = Field(gt=0, le=MOST_WIDTH, description="width of each expert")
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
