"""Bring the run.yaml of an earlier ATOM to the schema of this one.

A run.yaml without a ``schema`` was written by ATOM 0.1.0, whose schema is 1. A change of a key's
name or meaning adds one to :data:`SCHEMA`, and a function to :data:`MIGRATIONS` that takes the
sections from the schema before: runs, checkpoints and exports stay readable.
"""

from __future__ import annotations

from collections.abc import Callable

from atom.errors import UserError
from atom.recipe import optimizers
from atom.recipe.sections import Section

KEY = "schema"
SCHEMA = 2


def _one_optimizer(sections: Section) -> Section:
    """From 1: the optimizer has its own keys alone."""
    section = sections.get("optimizer")
    if not isinstance(section, dict):
        return sections
    model = optimizers.model_of(section)
    own = section if model is None else model.model_fields
    return sections | {"optimizer": {key: section[key] for key in section if key in own}}


MIGRATIONS: dict[int, Callable[[Section], Section]] = {1: _one_optimizer}
"""Schema -> what makes its sections those of the next."""


def migrated(sections: Section, place: str) -> Section:
    """Return the sections of a run.yaml in the present schema.

    Args:
        sections: as they stand in the file.
        place: the file, for the error.

    Raises:
        UserError: the schema is none that this ATOM knows.
    """
    rest = {name: section for name, section in sections.items() if name != KEY}
    schema = sections.get(KEY, 1)
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise UserError(
            f"{place} cannot be read as a run; valid: a number from 1 to {SCHEMA}",
            key=KEY,
            value=schema,
        )
    if schema > SCHEMA:
        raise UserError(
            f"{place} was written by a later ATOM; valid: at most {SCHEMA}, or a later ATOM",
            key=KEY,
            value=schema,
        )
    for number in range(schema, SCHEMA):
        rest = MIGRATIONS[number](rest)
    return rest
