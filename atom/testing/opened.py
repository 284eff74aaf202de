"""A component as a run opens it, with the kit's own components beside what is installed."""

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
    """Return what is installed, and the kit's own components."""
    return partners.with_partners(Host.load())


def opened(component: Component, config: BaseModel | None) -> Chosen[Any]:
    """Return a component opened anew.

    Raises:
        UserError: a component that its parameters name is unknown, or has a wrong parameter.
    """
    return Opener(host()).chosen(component, config)


def described(component: Component, config: BaseModel | None) -> list[Any]:
    """Return what :func:`again` takes, as JSON."""
    parameters = TypeAdapter(Any).dump_python(config, mode="json")
    return [component.declaration.section, component.address, parameters or {}]


def again(section: str, address: str, parameters: dict[str, Any]) -> Chosen[Any]:
    """Open a component in another process."""
    return Opener(host()).choose(KIND[section], address, parameters, section)
