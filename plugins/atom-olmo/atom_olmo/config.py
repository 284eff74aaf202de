"""Parameters of an OLMo 2 model (OLMo Team, 2024, https://arxiv.org/abs/2501.00656, table 3)."""

from typing import Self

from pydantic import ConfigDict, Field, model_validator

from atom.architecture import (
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
    SoftCap,
    check_head_dim,
    check_heads,
)
from atom.recipe.rope_scaling import SharpenedRopeScaling


class Olmo2(SharpenedRopeScaling):
    """One size of the family. Every field can be overridden: ``architecture.n_layers=12``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(gt=0, le=MOST_WIDTH, description="width of the residual stream")
    n_layers: int = Field(gt=0, le=MOST_LAYERS, description="transformer blocks")
    n_heads: int = Field(
        gt=0, le=MOST_WIDTH, description="query heads; the head dimension is dim / n_heads"
    )
    n_kv_heads: int | None = Field(
        default=None,
        gt=0,
        le=MOST_WIDTH,
        description="key and value heads; null: as many as n_heads",
    )
    hidden_dim: int = Field(gt=0, le=MOST_WIDTH, description="width of the feed-forward layer")
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
        default=4096,
        gt=0,
        le=MOST_TOKENS,
        description="maximum sequence length of RoPE, in tokens",
    )
    rope_theta: float = Field(default=500_000.0, gt=0, description="base of RoPE's frequencies")
    norm_eps: float = Field(default=1e-6, gt=0, description="added to the mean square in norms")
    init_std: float = Field(
        default=0.02,
        gt=0,
        description="standard deviation of all initial weights, the same in every layer; the "
        "normal distribution is truncated at 3 standard deviations",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        check_head_dim(self.dim, self.n_heads)
        check_heads(self.n_heads, self.n_kv_heads or self.n_heads)
        return self
