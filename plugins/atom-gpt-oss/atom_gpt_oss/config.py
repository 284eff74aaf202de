"""Parameters of a gpt-oss model (OpenAI, 2025, https://arxiv.org/abs/2508.10925)."""

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
from atom.recipe.rope_scaling import Kind, RopeScaling, SharpenedRopeScaling


class GptOss(SharpenedRopeScaling):
    """One size of the family. Every field can be overridden: ``architecture.n_layers=12``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(gt=0, le=MOST_WIDTH, description="width of the residual stream")
    n_layers: int = Field(gt=0, le=MOST_LAYERS, description="transformer blocks")
    n_heads: int = Field(default=64, gt=0, le=MOST_WIDTH, description="query heads")
    n_kv_heads: int = Field(default=8, gt=0, le=MOST_WIDTH, description="key and value heads")
    head_dim: int = Field(
        default=64, gt=0, le=MOST_WIDTH, multiple_of=2, description="width of a head, even for RoPE"
    )
    sliding_window: int = Field(
        default=128,
        gt=0,
        le=MOST_TOKENS,
        description="attention window of the first, third, … block, in tokens",
    )
    moe_hidden_dim: int = Field(gt=0, le=MOST_WIDTH, description="width of each expert")
    num_experts: int = Field(gt=0, le=MOST_WIDTH, description="experts of a block")
    top_k: int = Field(default=4, gt=0, le=MOST_WIDTH, description="experts that a token goes to")
    load_balance_coeff: float | None = Field(
        default=1e-3,
        gt=0,
        description="step of the routing biases that balance the experts without a loss; null: "
        "no balancing",
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the mean square in norms")
    logit_soft_cap: SoftCap = None
    vocab_size: int | None = Field(
        default=None,
        gt=0,
        le=MOST_TOKENS,
        description="rows of the embedding; null: the tokenizer's vocabulary",
    )
    max_seq_len: int = Field(
        default=131072,
        gt=0,
        le=MOST_TOKENS,
        description="maximum sequence length of RoPE, in tokens",
    )
    rope_theta: float = Field(default=150_000.0, gt=0, description="base of RoPE's frequencies")
    rope_scaling: Annotated[Kind, Idle("rope_factor", 1)] = Field(
        default="yarn", description=RopeScaling.model_fields["rope_scaling"].description
    )
    rope_factor: Annotated[float, Idle("rope_scaling", "none")] = Field(
        default=32.0, ge=1, description="factor by which the scaling extends the context; 1: none"
    )
    rope_truncate: Annotated[
        bool, Idle("rope_scaling", "none", "linear", "llama3"), Idle("rope_factor", 1)
    ] = Field(default=False, description="round the dimensions between which YaRN interpolates")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_heads(self.n_heads, self.n_kv_heads)
        check_experts(self.top_k, self.num_experts)
        return self
