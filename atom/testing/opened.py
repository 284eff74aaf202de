"""Open a component as a run does, with the installed plugins and the kit's own components."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel, TypeAdapter

from atom.recipe.components import KIND
from atom.registry.host import Component, Host
from atom.registry.opening import Chosen, Opener
from atom.testing import partners


@functools.cache
def host() -> Host:
    """Return a host with the installed plugins and the kit's own components."""
    return partners.with_partners(Host.load())


def opened(component: Component, config: BaseModel | None) -> Chosen[Any]:
    """Return a newly opened component.

    Raises:
        UserError: a component that its parameters name is unknown, or has an invalid parameter.
    """
    return Opener(host()).chosen(component, config)


def described(component: Component, config: BaseModel | None) -> list[Any]:
    """Return the arguments of :func:`again` as JSON data."""
    parameters = TypeAdapter(Any).dump_python(config, mode="json")
    return [component.declaration.section, component.address, parameters or {}]


def again(section: str, address: str, parameters: dict[str, Any]) -> Chosen[Any]:
    """Open a component in another process."""
    return Opener(host()).choose(KIND[section], address, parameters, section)
