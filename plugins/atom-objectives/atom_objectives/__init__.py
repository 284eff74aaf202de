"""Objectives: supervised fine-tuning on conversations, and preferences."""

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
    yield Objective(
        name="dpo",
        summary="direct preference optimization: chosen and rejected answers",
        config="atom_objectives.config:Dpo",
        encoder="atom_objectives.preferences:encoder",
        template="atom_objectives.templates:of_run",
        reads="records",
        packings=("best_fit", "none"),
        loss="atom_objectives.dpo:loss",
        sequences=2,
        reference=True,
    )
    yield Objective(
        name="distill",
        summary="distillation: a teacher's predictions of answers",
        config="atom_objectives.config:Distill",
        encoder="atom_objectives.distill:encoder",
        template="atom_objectives.templates:of_run",
        reads="records",
        packings=("best_fit", "none"),
        loss="atom_objectives.distill:loss",
        teacher="atom_objectives.distill:teacher",
    )
