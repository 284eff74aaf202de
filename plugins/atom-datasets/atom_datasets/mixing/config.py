"""Parameters of ``mixture``: sources and stages."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from atom.errors import UserError, nearest
from atom.plugin import Dataset
from atom.plugin.parameters import Component

FIRST = "first"
"""The name of the stage with the sources' own weights."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class MixtureSource(Component[Dataset]):
    """A dataset of a mixture: its name and parameters, and its place in the mixture."""

    weight: Weight | None = Field(
        default=None,
        description="share of the tokens in the first stage, on any scale; 0: only later stages "
        "read it",
    )
    tokens: PositiveInt | None = Field(
        default=None,
        description="tokens to read in the first stage, in place of a weight; together those of "
        "the run",
    )
    max_repetitions: PositiveFloat | None = Field(
        default=None, description="how often the run may read it; null: any number of times"
    )

    @property
    def share(self) -> float:
        """The weight in the first stage."""
        return float(self.tokens or self.weight or 0)


class MixtureStage(BaseModel):
    """A stage: from its first step on, the sources have other weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_step: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="the first step, as the lines of a run count them"
    )
    from_tokens: PositiveInt | None = Field(
        default=None,
        description="tokens to train on before it, in place of from_step; it begins with the next "
        "whole step",
    )
    weights: dict[str, Weight] = Field(
        description="source -> share of the tokens, on any scale; other sources are not read"
    )

    @property
    def begin(self) -> tuple[str, int]:
        """The key that says where it begins, and its value."""
        if self.from_step is not None:
            return "from_step", self.from_step
        assert self.from_tokens is not None
        return "from_tokens", self.from_tokens

    def step(self, tokens_per_step: int) -> int:
        """Return its first step, counted from 0."""
        if self.from_step is not None:
            return self.from_step - 1
        assert self.from_tokens is not None
        return -(-self.from_tokens // tokens_per_step)


class MixtureConfig(BaseModel):
    """Other datasets, each with a share of the tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: dict[str, MixtureSource] = Field(
        description="name -> a dataset with its parameters, and weight or tokens"
    )
    stages: dict[str, MixtureStage] = Field(
        default={}, description="name -> a later part of the run with other weights"
    )

    @model_validator(mode="after")
    def _is_a_mixture(self) -> MixtureConfig:
        if not self.sources:
            raise UserError(
                "a mixture needs sources",
                valid="dataset.sources.NAME={name: DATASET, weight: WEIGHT}",
                key="dataset.sources",
            )
        for name, source in self.sources.items():
            _check_source(name, source)
        self._check_budgets()
        if not any(source.share for source in self.sources.values()):
            raise UserError(
                "all weights are 0, so that the first step has no source",
                valid="a source with a weight above 0",
                key="dataset.sources",
            )
        for name, stage in self.stages.items():
            self._check_stage(name, stage)
        self._check_used()
        return self

    def _check_budgets(self) -> None:
        """Refuse budgets beside weights, which are on another scale."""
        if not any(source.tokens for source in self.sources.values()):
            return
        for name, source in self.sources.items():
            if source.weight:
                raise UserError(
                    "another source has tokens",
                    valid="tokens for all sources of the first stage, or weights for all",
                    key=f"dataset.sources.{name}.weight",
                    value=source.weight,
                )

    def _check_stage(self, name: str, stage: MixtureStage) -> None:
        key = f"dataset.stages.{name}"
        if name == FIRST:
            raise UserError("is the name of the stage with the sources' own weights",
                            valid="another name", key=key)  # fmt: skip
        if (stage.from_step is None) == (stage.from_tokens is None):
            raise UserError("a stage begins from a step or from a number of tokens",
                            valid="either from_step or from_tokens", key=key)  # fmt: skip
        for source, weight in stage.weights.items():
            if source not in self.sources:
                raise UserError(
                    f"there is no source {source}; {nearest(source, self.sources)}",
                    key=f"{key}.weights.{source}",
                    value=weight,
                )
        if not any(stage.weights.values()):
            raise UserError(
                "no source has a weight above 0",
                valid="source -> weight",
                key=f"{key}.weights",
                value=stage.weights,
            )
        for other, before in self.stages.items():
            if other == name:
                break
            if before.begin == stage.begin:
                raise same_begin(name, stage, other)

    def _check_used(self) -> None:
        """Refuse a source that no stage reads: its settings would have no effect."""
        for name, source in self.sources.items():
            later = (stage.weights.get(name) for stage in self.stages.values())
            if not source.share and not any(later):
                raise UserError(
                    "no stage reads the source",
                    valid="a weight above 0, here or in a stage",
                    key=f"dataset.sources.{name}.weight",
                    value=source.weight,
                )


def _check_source(name: str, source: MixtureSource) -> None:
    key = f"dataset.sources.{name}"
    if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
        raise UserError(
            f"{name!r} is no name of a source", valid="letters, digits, - and _", key=key
        )
    if source.weight is None and source.tokens is None:
        for given in source.parameters:
            if get_close_matches(given, ("weight", "tokens")):
                raise UserError(
                    f"{given} is no key of a source; {nearest(given, ('weight', 'tokens'))}",
                    key=key,
                )
    if (source.weight is None) == (source.tokens is None):
        raise UserError("a source has a share of the tokens", valid="either weight or tokens",
                        key=key)  # fmt: skip


def same_begin(name: str, stage: MixtureStage, other: str) -> UserError:
    """Return the error of a stage that begins with another one."""
    key, value = stage.begin
    return UserError(
        f"the stage {other} begins there, too",
        valid="another step",
        key=f"dataset.stages.{name}.{key}",
        value=value,
    )
