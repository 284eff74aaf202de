"""Define the section ``validation`` of a run: the sets, how much of them is read, and when."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt, field_validator

from atom.errors import UserError, nearest
from atom.plugin import Dataset
from atom.plugin.parameters import Component
from atom.recipe.sections import Model

if TYPE_CHECKING:
    from atom.recipe.run import Run

HELD_OUT = "held_out"
"""The name of the set of documents that are held out."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(name: str) -> str:
    """Return ``name`` if it can name a validation set.

    Raises:
        ValueError: it has other characters than letters, digits, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a set; valid: letters, digits, _ and -")
    return name


class Validation(Model):
    """Text that the model is validated on during training: see docs/validation.md."""

    @property
    def names(self) -> list[str]:
        """The names of all sets."""
        return [*self.sets, *([HELD_OUT] if self.fraction else [])]

    def averaged(self, callbacks: Iterable[str]) -> list[str]:
        """Return the names of the results of all sets on the weights that callbacks average."""
        return [f"{name}/{callback}" for callback in callbacks for name in self.names]

    @property
    def described(self) -> str:
        """What is validated and when, for people; empty if nothing is."""
        if not self.names:
            return ""
        often = "every step" if self.interval == 1 else f"every {self.interval:,} steps"
        return f"{', '.join(self.names)}: {often}, {self.tokens:,} tokens"

    sets: dict[str, Component[Dataset]] = Field(
        default={}, description="name -> a dataset; none: no validation"
    )
    interval: PositiveInt = Field(
        default=500,
        le=10**9,
        description="steps from one validation to the next; the last step is validated, too",
    )
    tokens: PositiveInt = Field(
        default=262_144,
        le=10**12,
        description="tokens of a set to read, rounded up to whole sequences; a shorter set is read "
        "once",
    )

    fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="fraction of the dataset's documents, by a digest of their content, that are "
        "not trained on and form the validation set held_out; 0: none",
    )

    @field_validator("sets")
    @classmethod
    def _have_names(cls, sets: dict[str, Component[Dataset]]) -> dict[str, Component[Dataset]]:
        for name in sets:
            check_name(name)
        return sets


def check_fraction(run: Run) -> None:
    """Refuse to hold documents out where that cannot be done."""
    fraction = run.validation.fraction
    if not fraction:
        return
    if HELD_OUT in run.validation.sets:
        raise UserError(
            f"is the set of validation.fraction={fraction}",
            valid="another name",
            key=f"validation.sets.{HELD_OUT}",
        )
    if run.data.packing == "windows":
        raise UserError(
            "holds documents out, and data.packing=windows reads pieces of stored tokens, whatever "
            "document they belong to",
            valid="0, or another packing",
            key="validation.fraction",
            value=fraction,
        )


def check_best(run: Run) -> None:
    """Refuse to keep the best checkpoints by values that checkpoints do not have."""
    name, kept = run.checkpoint.keep_best_of, run.checkpoint.keep_best
    if name is None or not kept:
        return
    known = [*run.validation.names, *run.validation.averaged(run.callback_names)]
    if name not in known:
        raise UserError(
            f"there is no such validation set; {nearest(name, known)}"
            if known
            else "the run has no validation sets",
            valid=None if known else "one of validation.sets, or null for the training loss",
            key="checkpoint.keep_best_of",
            value=name,
        )
    interval = run.checkpoint.interval
    if interval % run.validation.interval:
        raise UserError(
            f"leaves checkpoints (checkpoint.interval={interval}) without a loss of {name} that "
            f"checkpoint.keep_best={kept} could compare",
            valid=f"a divisor of {interval}",
            key="validation.interval",
            value=run.validation.interval,
        )
