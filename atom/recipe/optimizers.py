"""Define the section of a run that names its optimizer, and the keys that every optimizer has."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from atom import plugin
from atom.plugin.parameters import Component
from atom.recipe.ranges import Range
from atom.recipe.sections import Model, Numbers

Undecayed = Literal["norms", "biases", "embeddings"]


class ParameterGroup(Model):
    """Parameters with another learning rate or decay."""

    match: str = Field(
        min_length=1,
        description="pattern of names, such as `layers.*.attention.*`: * matches any characters",
    )
    lr_factor: Annotated[float, Range(0, above=True, whole=False)] = Field(
        default=1.0, description="factor of the learning rate"
    )
    weight_decay: Annotated[
        float | None, Range(0, whole=False, null="for that of the optimizer")
    ] = Field(default=None, description="weight decay; null: that of the optimizer")

    def has(self, name: str) -> bool:
        """Return whether the group has the parameter of a name."""
        return fnmatchcase(name, self.match)


class Optimizer(Numbers, Component[plugin.Optimizer]):
    """An optimizer, and the parameters with other options.

    The first group that matches a parameter applies.
    """

    groups: list[ParameterGroup] = Field(
        default=[], description="parameters with another learning rate or weight decay"
    )
    no_decay: list[Undecayed] = Field(
        default=[],
        description="parameters without weight decay: `norms`, `biases`, `embeddings`",
    )

    def group(self, name: str) -> ParameterGroup | None:
        """Return the group of a parameter."""
        return next((group for group in self.groups if group.has(name)), None)
