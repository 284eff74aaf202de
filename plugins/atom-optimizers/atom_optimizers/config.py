"""Parameters of the optimizers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Decay = Annotated[float, Field(ge=0, lt=1)]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Adaptive(_Parameters):
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    betas: tuple[_Decay, _Decay] = Field(
        default=(0.9, 0.95), description="decay rates of the two moments"
    )
    eps: float = Field(default=1e-8, gt=0, description="added to the denominator of the update")
    state_dtype: Literal["bfloat16"] | None = Field(
        default=None, description="dtype of the moments; null: that of the parameters"
    )


class AdamW(_Adaptive):
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

    weight_decay: float = Field(default=0.1, ge=0, description="decoupled weight decay")


class Adam(_Adaptive):
    """Adam (https://arxiv.org/abs/1412.6980)."""

    weight_decay: float = Field(
        default=0.1, ge=0, description="factor of the weights that is added to the gradient"
    )


class Muon(_Adaptive):
    """Muon for the matrices of layers, and AdamW for all else (https://kellerjordan.github.io/posts/muon).

    ``betas``, ``eps`` and ``state_dtype`` are AdamW's.
    """

    weight_decay: float = Field(
        default=0.1, ge=0, description="decoupled weight decay of both optimizers"
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="momentum of Muon")


class Dion(_Adaptive):
    """Dion for the matrices of layers, and AdamW for all else (https://arxiv.org/abs/2504.05295).

    ``betas``, ``eps`` and ``state_dtype`` are AdamW's.
    """

    lr: float = Field(default=0.01, gt=0, description="peak learning rate of Dion")
    adamw_lr: float = Field(default=3e-4, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(
        default=0.1, ge=0, description="decoupled weight decay of both optimizers"
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="momentum of Dion")
    rank_fraction: float = Field(
        default=0.25, gt=0, le=1, description="rank of an update, as a fraction of the full rank"
    )


class Lion(_Parameters):
    """Lion (https://arxiv.org/abs/2302.06675)."""

    lr: float = Field(default=1e-4, gt=0, description="peak learning rate")
    betas: tuple[_Decay, _Decay] = Field(
        default=(0.9, 0.99),
        description="decay rates of the momentum: for the update, and for what is kept",
    )
    weight_decay: float = Field(default=0.3, ge=0, description="decoupled weight decay")
    state_dtype: Literal["bfloat16"] | None = Field(
        default=None, description="dtype of the momentum; null: that of the parameters"
    )


class Adafactor(_Parameters):
    """Adafactor (https://arxiv.org/abs/1804.04235), with the step size of torch's."""

    lr: float = Field(
        default=0.01, gt=0, description="largest step, relative to the size of the parameter"
    )
    beta2_decay: float = Field(
        default=-0.8,
        ge=-1,
        lt=0,
        description="power of the step by which the second moment's rate falls",
    )
    eps1: float | None = Field(
        default=None,
        gt=0,
        description="least root of the second moment; null: the precision of the parameters' dtype",
    )
    eps2: float = Field(default=1e-3, gt=0, description="least size of a parameter")
    clip: float = Field(default=1.0, gt=0, description="largest root mean square of an update")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
