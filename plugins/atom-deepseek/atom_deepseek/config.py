"""Parameters of DeepSeek-V3 models (DeepSeek-AI, 2024, https://arxiv.org/abs/2412.19437)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from atom.architecture import MOST_LAYERS, MOST_TOKENS, MOST_WIDTH, SoftCap
from atom.errors import UserError
from atom.recipe.idle import Idle
from atom.recipe.rope_scaling import Kind, RopeScaling


class DeepSeekV3(RopeScaling):
    """One size of the family. Every field can be overridden: ``architecture.n_layers=12``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(gt=0, le=MOST_WIDTH, description="width of the residual stream")
    n_layers: int = Field(gt=0, le=MOST_LAYERS, description="transformer blocks")
    n_dense_layers: int = Field(
        ge=0,
        le=MOST_LAYERS,
        description="blocks at the start that have a feed-forward layer and no experts",
    )
    n_heads: int = Field(gt=0, le=MOST_WIDTH, description="attention heads")
    logit_soft_cap: SoftCap = None
    vocab_size: int | None = Field(
        default=None,
        gt=0,
        le=MOST_TOKENS,
        description="rows of the embedding; null: the tokenizer's vocabulary",
    )

    norm_eps: float = Field(default=1e-6, gt=0, description="added to the mean square in norms")

    # Multi-head latent attention (section 2.1.1)
    q_lora_rank: int | None = Field(
        default=None,
        gt=0,
        le=MOST_WIDTH,
        description="width of the compressed query; null: not compressed",
    )
    kv_lora_rank: int = Field(
        default=512, gt=0, le=MOST_WIDTH, description="width that keys and values are compressed to"
    )
    qk_nope_head_dim: int = Field(
        default=128,
        gt=0,
        le=MOST_WIDTH,
        description="width of a head's query and key without RoPE",
    )
    qk_rope_head_dim: int = Field(
        default=64,
        gt=0,
        le=MOST_WIDTH,
        multiple_of=2,
        description="width of a head's query and key with RoPE",
    )
    v_head_dim: int = Field(default=128, gt=0, le=MOST_WIDTH, description="width of a head's value")

    # Experts (section 2.1.2)
    dense_hidden_dim: Annotated[int, Idle("n_dense_layers", 0)] = Field(
        gt=0, le=MOST_WIDTH, description="width of the dense blocks' feed-forward layer"
    )
    moe_hidden_dim: int = Field(gt=0, le=MOST_WIDTH, description="width of each expert")
    num_experts: int = Field(gt=0, le=MOST_WIDTH, description="routed experts of a block")
    num_shared_experts: int = Field(
        gt=0, le=MOST_WIDTH, description="experts that every token goes to"
    )
    top_k: int = Field(gt=0, le=MOST_WIDTH, description="routed experts that a token goes to")
    score_func: Literal["sigmoid", "softmax"] = Field(
        default="sigmoid", description="function from a token's affinities to the experts to scores"
    )
    route_norm: bool = Field(
        default=True, description="normalize the scores of a token's experts to a sum of one"
    )
    route_scale: float = Field(
        default=1.0, gt=0, description="factor of the routed experts' outputs"
    )
    num_expert_groups: int | None = Field(
        default=None,
        gt=0,
        le=MOST_WIDTH,
        description="number of groups (nodes) of experts; null: no groups",
    )
    num_limited_groups: int | None = Field(
        default=None,
        gt=0,
        le=MOST_WIDTH,
        description="number of groups that a token's experts are chosen from",
    )
    load_balance_coeff: float | None = Field(
        default=1e-3,
        gt=0,
        description="step of the routing biases that balance the experts without a loss; null: "
        "no balancing",
    )

    # Multi-token prediction (section 2.2)
    mtp_depth: int = Field(
        default=0,
        ge=0,
        le=MOST_LAYERS,
        description="blocks that predict a further token each, in training only; 0: none",
    )
    mtp_loss_weight: Annotated[float, Idle("mtp_depth", 0)] = Field(
        default=0.3, gt=0, description="weight of the mean of their losses, λ of the paper"
    )

    # Positions
    max_seq_len: int = Field(
        default=16384,
        gt=0,
        le=MOST_TOKENS,
        description="maximum sequence length of RoPE, in tokens",
    )
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of RoPE's frequencies")
    rope_scaling: Annotated[Kind, Idle("rope_factor", 1)] = Field(
        default="yarn", description=RopeScaling.model_fields["rope_scaling"].description
    )
    mscale: Annotated[
        float, Idle("rope_factor", 1), Idle("rope_scaling", "none", "linear", "llama3")
    ] = Field(default=1.0, gt=0, description="strength of YaRN's scaling of attention")

    @classmethod
    def _of_mscale(cls, scale: Any, of_all: Any, section: Mapping[str, Any]) -> dict[str, Any]:
        super()._of_mscale(scale, of_all, section)
        return {"mscale": scale}

    @property
    def attention_factor(self) -> float:
        """1: attention scales its logits instead, by ``mscale``."""
        return 1.0

    def rope_parameters(self, theta: float) -> dict[str, Any]:
        """Return ``rope_parameters`` of a ``config.json``."""
        said = super().rope_parameters(theta)
        if self.scaling == "yarn":
            said |= {"mscale": self.mscale, "mscale_all_dim": self.mscale}
        return said

    @model_validator(mode="after")
    def _fits(self) -> Self:
        groups, limited = self.num_expert_groups, self.num_limited_groups
        checks = (
            ("n_dense_layers", self.n_dense_layers <= self.n_layers, f"n_layers={self.n_layers}"),
            ("top_k", self.top_k <= self.num_experts, f"num_experts={self.num_experts}"),
            (
                "num_limited_groups",
                (groups is None) == (limited is None) and (limited or 0) <= (groups or 0),
                f"num_expert_groups={groups}, and set where that is",
            ),
        )
        for name, fits, limit in checks:
            if not fits:
                raise UserError(
                    f"must be at most {limit}",
                    key=f"architecture.{name}",
                    value=getattr(self, name),
                )
        if groups is None or limited is None:
            return self
        # A group's score is the sum of its two best experts'.
        if self.num_experts % groups or self.num_experts < 2 * groups:
            raise UserError(
                f"must divide num_experts={self.num_experts} into groups of two or more",
                key="architecture.num_expert_groups",
                value=groups,
            )
        reachable = self.num_experts // groups * limited
        if self.top_k > reachable:
            raise UserError(
                f"must be at most {reachable}, the experts of num_limited_groups={limited}",
                key="architecture.top_k",
                value=self.top_k,
            )
        return self
