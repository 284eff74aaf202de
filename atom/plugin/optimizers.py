"""Define what an optimizer's ``build`` is called with, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atom.plugin.contexts import Context

if TYPE_CHECKING:  # listing plugins imports no torch
    import torch

__all__ = ["OptimizerContext", "OptimizerPart"]


@dataclass(frozen=True, kw_only=True)
class OptimizerContext(Context):
    """``device`` is ``cpu`` or ``cuda``; ``parameter_dtype`` is ``float32`` or ``bfloat16``."""

    device: str
    parameter_dtype: str


def _every(_name: str, _shape: tuple[int, ...]) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class OptimizerPart:
    """A torch optimizer and the parameters that it updates.

    Attributes:
        optimizer: the class. It is called with parameter groups, each with ``options``; parameters
            may be DTensors, whose step all ranks take together. Its state depends on parameters and
            gradients alone, so that any layout can load it.
        options: the options of a group, with ``lr`` and ``weight_decay``: those of
            ``optimizer.groups`` replace them.
        updates: returns whether it updates the parameter of a name and an unsharded shape, unless
            an earlier part does.
        state: returns the elements of its state for a parameter of an unsharded shape.
        state_dtype: dtype of the state; None: that of the parameters.
    """

    optimizer: type[torch.optim.Optimizer]
    options: Mapping[str, Any] = field(hash=False)
    updates: Callable[[str, tuple[int, ...]], bool] = _every
    state: Callable[[tuple[int, ...]], int]
    state_dtype: str | None = None
