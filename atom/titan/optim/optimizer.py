"""The optimizer of a run, as torchtitan's config of it; and what it keeps for each parameter."""

from __future__ import annotations

from torchtitan.components.optimizer import OptimizersContainer, default_adamw
from torchtitan.config.override import derive

from atom.plan.layout import BYTES
from atom.recipe.optimizers import Muon, Optimizer
from atom.titan.optim.kept_optimizers import STATES_IN_BFLOAT16, KeptOptimizers
from atom.titan.optim.muon import OptimizersWithMuon, with_muon

_MOMENTS = 2
"""That Adam and AdamW keep of each element."""


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
    """Return the bytes that Adam and AdamW keep of an element of a parameter."""
    in_bfloat16 = found.implementation == STATES_IN_BFLOAT16
    return _MOMENTS * BYTES["bfloat16" if in_bfloat16 else parameter_dtype]


def matrix_state_bytes(found: OptimizersContainer.Config, parameter_dtype: str) -> int | None:
    """Return the bytes that Muon keeps of an element of a layer's matrix; None without Muon."""
    return BYTES[parameter_dtype] if isinstance(found, OptimizersWithMuon.Config) else None
