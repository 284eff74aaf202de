"""Define the section of a run that trains low-rank adapters instead of the model's weights."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from atom.errors import UserError
from atom.recipe.ranges import Range
from atom.recipe.sections import Model

if TYPE_CHECKING:
    from atom.recipe.run import Run


class Lora(Model):
    """Low-rank adapters of linear layers, which are trained while the model's weights stay as they
    are: LoRA, arXiv:2106.09685.
    """

    rank: Annotated[int, Range(0, 65536)] = Field(
        default=0, description="rank of the update of a weight; 0: no adapters, all weights train"
    )
    alpha: Annotated[float, Range(0, above=True, whole=False)] = Field(
        default=16.0, description="the update is multiplied by alpha / rank"
    )
    rslora: bool = Field(
        default=False,
        description="multiply by alpha / sqrt(rank) instead, so that the update does not shrink "
        "with the rank: arXiv:2312.03732",
    )
    targets: list[str] = Field(
        default=["*"],
        min_length=1,
        description="patterns of the linear layers to adapt, such as `wq`, `attention.*` or "
        "`layers.0.*`: whole names or their ends; `*`: all but the output layer and the routers "
        "of experts",
    )

    adapter: Path | None = Field(
        default=None,
        description="initial adapters: a folder in PEFT's format; null: drawn from the seed",
    )

    @field_validator("adapter")
    @classmethod
    def _is_whole(cls, adapter: Path | None) -> Path | None:
        return None if adapter is None else adapter.expanduser().absolute()

    @field_validator("targets")
    @classmethod
    def _are_patterns(cls, targets: list[str]) -> list[str]:
        if not all(target.strip() for target in targets):
            raise ValueError("has an empty pattern; valid: patterns of names, such as wq")
        return targets

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def matches(pattern: str, name: str) -> bool:
    """Return whether a pattern is of the name of a layer, or of its end."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def check(run: Run) -> None:
    """Refuse adapters without weights that they adapt.

    Raises:
        UserError: names the key.
    """
    if not run.lora.rank or run.dry_run:
        return
    if not run.checkpoint.enable:
        raise UserError(
            "trains adapters, which would not be saved with checkpoint.enable=false",
            valid="checkpoint.enable=true",
            key="lora.rank",
            value=run.lora.rank,
        )
    if not (run.checkpoint.initial_load or run.checkpoint.engine.get("initial_load_path")):
        raise UserError(
            "needs weights to adapt, and no checkpoint.initial_load names any",
            valid="checkpoint.initial_load=hf:FOLDER, or that of a run",
            key="lora.rank",
            value=run.lora.rank,
        )
    if run.checkpoint.engine.get("last_save_in_hf"):
        raise UserError(
            "would save a whole model, and checkpoints of a run with lora.rank have its adapters "
            "alone",
            valid="false, and `atom export`",
            key="checkpoint.last_save_in_hf",
            value=True,
        )
