"""Validate the parameters of a component against the model that its declaration references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from atom.errors import UserError
from atom.plugin.parameters import spelled
from atom.recipe import ranges
from atom.recipe.validation import validated
from atom.registry.host import Component, resolve
from atom.registry.renaming import renamed


def model_of(component: Component) -> type[BaseModel] | None:
    """Return the model of a component's parameters; None if it has no parameters.

    Raises:
        UserError: the declaration references something else, or nothing.
    """
    reference = component.declaration.config
    if reference is None:
        return None
    model = resolve(reference, component)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise UserError(
            f"{component.owner} cannot be used: its config {reference} is no pydantic model"
        )
    return model


def configured(
    component: Component,
    parameters: Mapping[str, Any],
    *,
    key: str | None = None,
    also: Iterable[str] = ("name",),
) -> BaseModel | None:
    """Return ``parameters`` as the config model of ``component``, or None if it has no parameters.

    Components among the parameters are not resolved: see
    :meth:`atom.registry.opening.Opener.choose`.

    Args:
        component: the component of a plugin.
        parameters: the parameters as in a run.
        key: where the user wrote them; None for the section of the component's kind.
        also: the other keys of the section, for suggestions.

    Raises:
        UserError: a parameter is unknown or invalid.
    """
    key = component.declaration.section if key is None else key
    model = model_of(component)
    if model is None:
        if parameters:
            parameter, value = next(iter(parameters.items()))
            raise UserError(
                f"{component.name} has no parameters", key=f"{key}.{parameter}", value=value
            )
        return None
    _refuse_twice(component, model, also, key)
    ranges.refuse_odd_in(model, parameters, key)
    known = {**dict.fromkeys(also), **model.model_fields}
    # The model's own validators name keys of the kind's section.
    with renamed(component.kind, key, model.model_fields):
        config: BaseModel = validated(TypeAdapter(model), parameters, key=key, fields=known)
    return config


def _refuse_twice(
    component: Component, model: type[BaseModel], also: Iterable[str], key: str
) -> None:
    """Refuse a parameter with the name of another key of the section, which takes its value."""
    names = {spelled(name, field) for name, field in model.model_fields.items()}
    for name in also:
        if name in names:
            raise UserError(
                f"{component.owner} cannot be used here: its parameter {name} can never be set, "
                f"because the section has a key {name} of its own",
                key=f"{key}.{name}",
            )
