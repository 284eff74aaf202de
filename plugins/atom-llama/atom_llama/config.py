"""Parameters of a Llama 3 model (Llama Team, 2024, https://arxiv.org/abs/2407.21783, table 3)."""

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from atom.architecture import (
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
    SoftCap,
    check_head_dim,
    check_heads,
)
from atom.recipe.idle import Idle
from atom.recipe.rope_scaling import Kind, RopeScaling, SharpenedRopeScaling


class Llama3(SharpenedRopeScaling):
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
    hidden_dim: int | None = Field(
        default=None,
        gt=0,
        le=MOST_WIDTH,
        description="width of the feed-forward layer; null: derived from multiple_of and "
        "ffn_dim_multiplier",
    )
    multiple_of: Annotated[int, Idle("hidden_dim")] = Field(
        default=256,
        gt=0,
        le=MOST_WIDTH,
        description="the feed-forward width is rounded up to a multiple of this",
    )
    ffn_dim_multiplier: Annotated[float | None, Idle("hidden_dim")] = Field(
        default=None, gt=0, description="factor of the feed-forward width of 8/3 dim; null: 1"
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the mean square in norms")
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
        default=131072,
        gt=0,
        le=MOST_TOKENS,
        description="maximum sequence length of RoPE, in tokens",
    )
    rope_theta: float = Field(default=500_000.0, gt=0, description="base of RoPE's frequencies")
    rope_scaling: Annotated[Kind, Idle("rope_factor", 1)] = Field(
        default="llama3", description=RopeScaling.model_fields["rope_scaling"].description
    )
    rope_factor: Annotated[float, Idle("rope_scaling", "none")] = Field(
        default=8.0, ge=1, description="factor by which the scaling extends the context; 1: none"
    )
    rope_original_seq_len: Annotated[
        int, Idle("rope_scaling", "none", "linear"), Idle("rope_factor", 1)
    ] = Field(default=8192, gt=0, le=MOST_TOKENS, description="original context length, in tokens")

    @model_validator(mode="after")
    def _heads_fit(self) -> "Llama3":
        check_head_dim(self.dim, self.n_heads)
        check_heads(self.n_heads, self.n_kv_heads or self.n_heads)
        return self
