"""Objectives: supervised fine-tuning on conversations."""

from collections.abc import Iterator

from atom.plugin import Objective, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""


@hookimpl
def atom_objectives() -> Iterator[Objective]:
    yield Objective(
        name="sft",
        summary="supervised fine-tuning: the answers of conversations",
        config="atom_objectives.config:Sft",
        encoder="atom_objectives.sft:encoder",
        template="atom_objectives.templates:of_run",
        reads="records",
        packings=("best_fit", "none"),
    )
