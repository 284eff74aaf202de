"""Check a layout that a strategy considers, before it is the layout of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.recipe.batches import Batches
from atom.titan.checks import batch, experts, pipeline, sequence, tensor_parallel
from atom.titan.checks.plan import LaidOut

LAYOUT_CHECKS: tuple[Callable[[LaidOut], None], ...] = (
    batch.check,
    tensor_parallel.check,
    experts.check_division,
    sequence.check_division,
    pipeline.check_split,
)
"""Checks of a model on a layout, in their order. Each raises a ``UserError``."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model on a layout: see :class:`atom.titan.checks.plan.LaidOut`."""

    training: TrainingConfig
    parallelism: ParallelismConfig
    model_config: Any
    architecture: BaseModel | None = None
    local_given: bool = False
    batches: Batches = field(default=Batches((), 1))

    def check(self) -> None:
        """Refuse degrees and batch sizes that do not divide evenly.

        Raises:
            UserError: names the key at fault and what would be valid.
        """
        for check in LAYOUT_CHECKS:
            check(self)
