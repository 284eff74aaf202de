"""The sections of a run that are torchtitan's own: its dataclasses are their schema.

What torchtitan documents is what a run accepts. What its dataclasses do not say, ranges of numbers
and settings without effect, is in :mod:`atom.recipe.ranges` and
:mod:`atom.recipe.effect_rules`; tests hold both against all of its fields.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import pydantic
from pydantic import ConfigDict, TypeAdapter
from torchtitan.config import CommConfig, CompileConfig, DebugConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, MemoryBudgetAC, SelectiveAC
from torchtitan.tools.profiler import Profiler

from atom.errors import UserError, nearest
from atom.recipe.sections import Section
from atom.recipe.validation import validated
from atom.titan.checkpoint.checkpointer import VerifiedCheckpointManager
from atom.titan.optim.rates import EndingLRSchedulers
from atom.titan.train.metrics import StepMetricsProcessor

T = TypeVar("T")

SCHEMA: dict[str, type] = {
    "training": TrainingConfig,
    "lr_scheduler": EndingLRSchedulers.Config,
    "checkpoint": VerifiedCheckpointManager.Config,
    "compile": CompileConfig,
    "comm": CommConfig,
    "metrics": StepMetricsProcessor.Config,
    "profiler": Profiler.Config,
    "debug": DebugConfig,
}

ACTIVATION_CHECKPOINT: dict[str, type | None] = {
    "none": None,
    "selective": SelectiveAC.Config,
    "full": FullAC.Config,
    "memory_budget": MemoryBudgetAC.Config,
}


def build(schema: type[T], section: Section, key: str) -> T:
    """Return ``section`` as an instance of torchtitan's dataclass ``schema``.

    Raises:
        UserError: an unknown key, a wrong type, or a value that the dataclass itself refuses.
    """
    names = [field.name for field in dataclasses.fields(schema) if field.init]  # type: ignore[arg-type]
    strict = pydantic.dataclasses.dataclass(schema, config=ConfigDict(extra="forbid"))
    checked: Any = validated(TypeAdapter(strict), section, key=key, fields=names)
    # pydantic's dataclass is a subclass; torchtitan gets exactly its own type.
    return schema(**{name: getattr(checked, name) for name in names})


def activation_checkpoint(section: Section) -> Any:
    """Return the policy that ``activation_checkpoint.mode`` names, with its options."""
    options = dict(section)
    mode = options.pop("mode", "selective")
    if mode not in ACTIVATION_CHECKPOINT:
        raise UserError(
            f"there is no such mode; {nearest(str(mode), ACTIVATION_CHECKPOINT)}",
            key="activation_checkpoint.mode",
            value=mode,
        )
    schema = ACTIVATION_CHECKPOINT[mode]
    if schema is None:
        known = {f.name for s in ACTIVATION_CHECKPOINT.values() if s for f in dataclasses.fields(s)}
        for name in (option for option in options if option not in known):
            raise UserError(
                f"{name} is no key here; {nearest(name, known | {'mode'})}",
                key=f"activation_checkpoint.{name}",
                value=options[name],
            )
        return None
    return build(schema, options, "activation_checkpoint")
