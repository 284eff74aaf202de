"""The sections of a run that name components, made from the kinds of components that there are."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from pydantic import Field

from atom.plugin import KINDS, Declaration
from atom.plugin.parameters import Component

ONE = tuple(kind.section for kind in KINDS if kind.chosen == "one")
"""Sections that name one component of a plugin each."""

NAMED = (*ONE, *(kind.section for kind in KINDS if kind.chosen == "optional"))
"""The same, and those of kinds that a run can do without."""

KIND: dict[str, type[Declaration]] = {kind.section: kind for kind in KINDS}
"""The kind that a section is about."""


def fields(*, but: Container[str] = ()) -> dict[str, Any]:
    """Return the fields of a run for the kinds, as :func:`pydantic.create_model` takes them.

    ``but`` are sections that the run declares itself.
    """
    sections = {kind.section: kind for kind in KINDS if kind.chosen != "otherwise"}
    return {name: _field(kind) for name, kind in sections.items() if name not in but}


def _field(kind: type[Declaration]) -> tuple[Any, Any]:
    # mypy takes what stands in brackets for a type.
    section: Any = Component[kind]  # type: ignore[valid-type]
    if kind.chosen == "many":
        return dict[str, section], Field(default={}, description=f"name -> a {kind.kind}")
    if kind.chosen == "optional":
        return section | None, Field(default=None, description=f"a {kind.kind}; null: none")
    return section, Field(description=f"the {kind.kind}, and its parameters beside its name")
