"""From the names in a run to the plugins' components, with their parameters validated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter

from atom.errors import UserError
from atom.host import Component, Host, resolve
from atom.run import Run
from atom.validation import validated


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
        # torchtitan's ParallelismConfig is the schema of its parameters: see atom.titan.layout.
        parallelism=Chosen(
            host.find("parallelism", run.parallelism.name, key="parallelism.name"), None
        ),
    )


def _choose(run: Run, host: Host, kind: str) -> Chosen:
    section = getattr(run, kind)
    component = host.find(kind, section.name, key=f"{kind}.name")
    reference = component.declaration.config
    if reference is None:
        if section.parameters:
            parameter, value = next(iter(section.parameters.items()))
            raise UserError(
                f"{section.name} has no parameters", key=f"{kind}.{parameter}", value=value
            )
        return Chosen(component, None)
    model = resolve(reference, component)
    config = validated(
        TypeAdapter(model), section.parameters, key=kind, fields=[*model.model_fields, "name"]
    )
    return Chosen(component, config)
