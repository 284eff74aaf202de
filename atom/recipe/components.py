"""Generate the sections of a run that name components from the component kinds."""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any

from pydantic import Field

from atom.plugin import KINDS, Declaration
from atom.plugin.parameters import Component

ONE = tuple(kind.section for kind in KINDS if kind.chosen == "one")
"""Sections that each name one component of a plugin."""

NAMED = (*ONE, *(kind.section for kind in KINDS if kind.chosen == "optional"))
"""The same sections, and the optional ones."""

_Name = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_-]*$")]

MANY = tuple(kind.section for kind in KINDS if kind.chosen == "many")
"""Sections that each name any number of components."""

KIND: dict[str, type[Declaration]] = {kind.section: kind for kind in KINDS}
"""The kind of each section."""


def fields(*, but: Container[str] = ()) -> dict[str, Any]:
    """Return the fields of a run for the kinds, as :func:`pydantic.create_model` takes them.

    ``but`` are sections that the run declares itself.
    """
    sections = {kind.section: kind for kind in KINDS if kind.chosen != "otherwise"}
    return {name: _field(kind) for name, kind in sections.items() if name not in but}


def _field(kind: type[Declaration]) -> tuple[Any, Any]:
    # mypy reads the expression in brackets as a type.
    section: Any = Component[kind]  # type: ignore[valid-type]
    if kind.chosen == "many":
        return dict[_Name, section], Field(default={}, description=f"name -> a {kind.kind}")
    if kind.chosen == "optional":
        return section | None, Field(default=None, description=f"a {kind.kind}; null: none")
    return section, Field(description=f"the {kind.kind}: its name and its parameters")
