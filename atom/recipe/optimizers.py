"""Define the optimizers of a run, one model each with only that optimizer's keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from atom.errors import UserError, nearest
from atom.recipe.sections import Model, Section
from atom.recipe.validation import unknown

_Decay = Annotated[float, Field(ge=0, lt=1)]


class _Adaptive(Model):
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

    name: Literal["AdamW"] = Field(default="AdamW", description="the optimizer")
    weight_decay: float = Field(default=0.1, ge=0, description="decoupled weight decay")


class Adam(_Adaptive):
    """Adam (https://arxiv.org/abs/1412.6980)."""

    name: Literal["Adam"] = Field(default="Adam", description="the optimizer")
    weight_decay: float = Field(
        default=0.1, ge=0, description="factor of the weights that is added to the gradient"
    )


class Muon(_Adaptive):
    """Muon for the matrices of layers, and AdamW for all else (https://kellerjordan.github.io/posts/muon).

    ``betas``, ``eps`` and ``state_dtype`` are AdamW's.
    """

    name: Literal["Muon"] = Field(default="Muon", description="the optimizer")
    weight_decay: float = Field(
        default=0.1, ge=0, description="decoupled weight decay of both optimizers"
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="momentum of Muon")


OPTIMIZERS: dict[str, type[AdamW | Adam | Muon]] = {"AdamW": AdamW, "Adam": Adam, "Muon": Muon}


def _name(section: Any) -> str:
    if isinstance(section, dict):
        return str(section.get("name", "AdamW"))
    return str(getattr(section, "name", "AdamW"))


Optimizer = Annotated[
    Annotated[AdamW, Tag("AdamW")] | Annotated[Adam, Tag("Adam")] | Annotated[Muon, Tag("Muon")],
    Discriminator(_name),
]
"""The optimizer that ``name`` selects; AdamW by default."""


def check(section: object) -> None:
    """Refuse an unknown optimizer, and a key of another optimizer.

    Args:
        section: the unvalidated section of a run.
    """
    if not isinstance(section, dict):
        return
    name = _name(section)
    if name not in OPTIMIZERS:
        raise UserError(
            f"there is no such optimizer; {nearest(name, OPTIMIZERS)}",
            key="optimizer.name",
            value=section["name"],
        )
    own = OPTIMIZERS[name].model_fields
    for key, value in section.items():
        having = [other for other, model in OPTIMIZERS.items() if key in model.model_fields]
        if key in own:
            continue
        if not having:
            raise unknown(["optimizer", str(key)], value, own)
        raise UserError(
            f"has no effect with optimizer.name={name}",
            valid=f"leave it out, or optimizer.name={' or '.join(having)}",
            key=f"optimizer.{key}",
            value=value,
        )


def model_of(section: object) -> type[AdamW | Adam | Muon] | None:
    """Return the model of the optimizer that a section names; None if it is unknown."""
    return OPTIMIZERS.get(_name(section))


def without_others(section: Section) -> Section:
    """Return the section without the keys that only other optimizers have."""
    if (model := model_of(section)) is None:
        return section
    others = {key for other in OPTIMIZERS.values() for key in other.model_fields}
    return {k: v for k, v in section.items() if k in model.model_fields or k not in others}
