"""The sections of a run that are torchtitan's own: its dataclasses are their schema.

No option of torchtitan is written down in ATOM; what torchtitan documents is what a run accepts.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import pydantic
from pydantic import ConfigDict, TypeAdapter
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    default_adamw,
)
from torchtitan.config import CommConfig, CompileConfig, DebugConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC, MemoryBudgetAC, SelectiveAC
from torchtitan.tools.profiler import Profiler

from atom.errors import UserError, nearest
from atom.run import Optimizer, Section
from atom.titan.checkpointer import VerifiedCheckpointManager
from atom.titan.metrics import StepMetricsProcessor
from atom.titan.muon import MUON, with_muon
from atom.validation import validated

T = TypeVar("T")

_OPTIMIZERS = ("Adam", "AdamW", MUON)

SCHEMA: dict[str, type] = {
    "training": TrainingConfig,
    "lr_scheduler": LRSchedulersContainer.Config,
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
        return None
    return build(schema, options, "activation_checkpoint")


def optimizer(section: Optimizer) -> OptimizersContainer.Config:
    """Return torchtitan's optimizer config: one group of all parameters, or Muon's and AdamW's."""
    if section.name not in _OPTIMIZERS:
        raise UserError(
            f"there is no such optimizer; {nearest(section.name, _OPTIMIZERS)}",
            key="optimizer.name",
            value=section.name,
        )
    config = default_adamw(
        lr=section.lr,
        betas=tuple(section.betas),
        eps=section.eps,
        weight_decay=section.weight_decay,
    )
    config.implementation = section.implementation
    if section.name == MUON:
        return with_muon(config, section.momentum)
    config.param_groups[0].optimizer_name = section.name
    return config
