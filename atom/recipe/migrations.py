"""Migrate the run.yaml of an earlier ATOM to the current schema.

A run.yaml without a ``schema`` was written by ATOM 0.1.0 and has schema 1. A change of a key's name
or meaning increments :data:`SCHEMA`, and adds a function to :data:`MIGRATIONS` that converts
sections of the previous schema. Existing runs, checkpoints and exports stay readable.
"""

from __future__ import annotations

from collections.abc import Callable

from atom.errors import UserError
from atom.recipe.sections import Section

KEY = "schema"
SCHEMA = 3


def _one_optimizer(sections: Section) -> Section:
    """Migrate from schema 1: remove keys that belong to other optimizers."""
    section = sections.get("optimizer")
    if not isinstance(section, dict) or section.get("name") == "Muon":
        return sections
    return sections | {"optimizer": {k: v for k, v in section.items() if k != "momentum"}}


def _order_of_documents(sections: Section) -> Section:
    """Migrate from schema 2: the order of documents had one version."""
    data = sections.get("data", {})
    return sections | {"data": {"order": 1, **data}} if isinstance(data, dict) else sections


MIGRATIONS: dict[int, Callable[[Section], Section]] = {1: _one_optimizer, 2: _order_of_documents}
"""Schema -> function that converts its sections to the next schema."""


def migrated(sections: Section, place: str) -> Section:
    """Return the sections of a run.yaml in the current schema.

    Args:
        sections: the sections in the file.
        place: the file, for the error.

    Raises:
        UserError: this ATOM does not know the schema.
    """
    rest = {name: section for name, section in sections.items() if name != KEY}
    schema = sections.get(KEY, 1)
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise UserError(
            f"{place} cannot be read as a run",
            valid=f"a number from 1 to {SCHEMA}",
            key=KEY,
            value=schema,
        )
    if schema > SCHEMA:
        raise UserError(
            f"{place} was written by a later ATOM",
            valid=f"at most {SCHEMA}, or a later ATOM",
            key=KEY,
            value=schema,
        )
    for number in range(schema, SCHEMA):
        rest = MIGRATIONS[number](rest)
    return rest
