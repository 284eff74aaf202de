"""From the names in a run to the plugins' components, with their parameters validated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter

from atom.errors import UserError
from atom.recipe import idle, ranges
from atom.recipe.run import Run
from atom.recipe.validation import validated
from atom.registry.host import Component, Host, resolve


@dataclass(frozen=True)
class Chosen:
    """A component that a run uses. ``config`` is its declaration's model, filled in, or None."""

    component: Component
    config: BaseModel | None

    def code(self, attribute: str) -> Callable[..., Any]:
        """Import what the declaration's ``attribute`` (``build``, ``prepare``, …) points to."""
        return resolve(getattr(self.component.declaration, attribute), self.component)


@dataclass(frozen=True)
class Selection:
    """The four components that a run names one of each. Kernels are chosen by operation later."""

    architecture: Chosen
    tokenizer: Chosen
    dataset: Chosen
    parallelism: Chosen


def select(run: Run, host: Host) -> Selection:
    """Find the components that ``run`` names.

    Raises:
        UserError: a name is unknown, ambiguous or broken, or a parameter is wrong.
    """
    return Selection(
        architecture=_choose(run, host, "architecture"),
        tokenizer=_choose(run, host, "tokenizer"),
        dataset=_choose(run, host, "dataset"),
        # The schema of its parameters is torchtitan's ParallelismConfig: atom.titan.checks.layout.
        parallelism=Chosen(
            host.find("parallelism", run.parallelism.name, key="parallelism.name"), None
        ),
    )


def configured(
    component: Component, parameters: Mapping[str, Any], *, also: Iterable[str] = ("name",)
) -> BaseModel | None:
    """Return ``parameters`` as the config model of ``component``, or None if it has no parameters.

    ``also`` are the other keys of the section, to suggest the nearest of.

    Raises:
        UserError: a parameter is unknown or wrong.
    """
    reference = component.declaration.config
    if reference is None:
        if parameters:
            parameter, value = next(iter(parameters.items()))
            raise UserError(
                f"{component.name} has no parameters",
                key=f"{component.kind}.{parameter}",
                value=value,
            )
        return None
    model = resolve(reference, component)
    for name, value in parameters.items():
        field = model.model_fields.get(name)
        if field is not None and ranges.is_numeric(field.annotation):
            try:
                ranges.refuse_odd(value)
            except ValueError as error:
                raise UserError(str(error), key=f"{component.kind}.{name}", value=value) from None
    config: BaseModel = validated(
        TypeAdapter(model),
        parameters,
        key=component.kind,
        fields={**dict.fromkeys(also), **model.model_fields},
    )
    return config


def _choose(run: Run, host: Host, kind: str) -> Chosen:
    section = getattr(run, kind)
    component = host.find(kind, section.name, key=f"{kind}.name")
    config = configured(component, section.parameters)
    idle.check(kind, config, run.given)
    return Chosen(component, config)
