"""Parameters of a model with gated linear attention (Yang et al., 2023,
https://arxiv.org/abs/2312.06635; the defaults are the paper's, section 4.4)."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from atom.errors import UserError


class GatedLinearAttention(BaseModel):
    """One size of the model. Every field can be overridden: ``architecture.n_layers=12``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(gt=0, description="width of the residual stream")
    n_layers: int = Field(gt=0, description="blocks")
    n_heads: int = Field(gt=0, description="heads, each with a state of its own")
    key_dim: int = Field(gt=0, description="width of queries and keys, over all heads")
    value_dim: int = Field(gt=0, description="width of values, over all heads")
    ffn_dim: int = Field(gt=0, description="width inside the feed-forward layer")
    gate_rank: int = Field(default=16, gt=0, description="rank of the projection to the decays")
    gate_temperature: float = Field(
        default=16.0, gt=0, description="a decay is sigmoid(x) ** (1 / gate_temperature)"
    )
    chunk: int = Field(
        default=16, gt=0, description="tokens computed at once; memory grows with it, steps shrink"
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> "GatedLinearAttention":
        for name in ("key_dim", "value_dim"):
            if getattr(self, name) % self.n_heads:
                raise UserError(
                    f"must divide by n_heads={self.n_heads}",
                    key=f"architecture.{name}",
                    value=getattr(self, name),
                )
        return self
