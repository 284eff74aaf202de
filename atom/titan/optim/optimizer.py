"""Translate the optimizer section into torchtitan's config, and compute its state size."""

from __future__ import annotations

from torchtitan.components.optimizer import OptimizersContainer, default_adamw
from torchtitan.config.override import derive

from atom.plan.layout import BYTES
from atom.recipe.optimizers import Muon, Optimizer
from atom.titan.optim.kept_optimizers import STATES_IN_BFLOAT16, KeptOptimizers
from atom.titan.optim.muon import OptimizersWithMuon, with_muon

_MOMENTS = 2
"""Moments that Adam and AdamW store per element."""


def config(section: Optimizer) -> OptimizersContainer.Config:
    """Return torchtitan's config: one group of all parameters, or Muon's and AdamW's."""
    adamw = default_adamw(
        lr=section.lr,
        betas=tuple(section.betas),
        eps=section.eps,
        weight_decay=section.weight_decay,
    )
    found = derive(adamw, KeptOptimizers.Config)
    if section.state_dtype is not None:
        found.implementation = STATES_IN_BFLOAT16
    if isinstance(section, Muon):
        return with_muon(found, section.momentum)
    found.param_groups[0].optimizer_name = section.name
    return found


def state_bytes(found: OptimizersContainer.Config, parameter_dtype: str) -> int:
    """Return the bytes of Adam's or AdamW's state per parameter element."""
    in_bfloat16 = found.implementation == STATES_IN_BFLOAT16
    return _MOMENTS * BYTES["bfloat16" if in_bfloat16 else parameter_dtype]


def matrix_state_bytes(found: OptimizersContainer.Config, parameter_dtype: str) -> int | None:
    """Return the bytes of Muon's state per element of a layer's matrix; None without Muon."""
    return BYTES[parameter_dtype] if isinstance(found, OptimizersWithMuon.Config) else None
