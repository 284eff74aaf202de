"""Validate the parameters of a component against the model that its declaration references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from atom.errors import UserError
from atom.recipe import ranges
from atom.recipe.validation import validated
from atom.registry.host import Component, resolve
from atom.registry.renaming import renamed


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
    reference = component.declaration.config
    if reference is None:
        if parameters:
            parameter, value = next(iter(parameters.items()))
            raise UserError(
                f"{component.name} has no parameters", key=f"{key}.{parameter}", value=value
            )
        return None
    model = resolve(reference, component)
    for name, value in parameters.items():
        field = model.model_fields.get(name)
        if field is not None and ranges.is_numeric(field.annotation):
            try:
                ranges.refuse_odd(value)
            except ValueError as error:
                raise UserError(str(error), key=f"{key}.{name}", value=value) from None
    known = {**dict.fromkeys(also), **model.model_fields}
    # The model's own validators name keys of the kind's section.
    with renamed(component.kind, key, model.model_fields):
        config: BaseModel = validated(TypeAdapter(model), parameters, key=key, fields=known)
    return config
