"""Check that activation checkpointing can do what the run asks of it."""

from __future__ import annotations

import torch

from atom.errors import UserError
from atom.titan.checks.compilation import compiles_model
from atom.titan.checks.plan import Plan


def check_budget(plan: Plan) -> None:
    """Refuse a memory budget for a model that is not compiled.

    Raises:
        UserError: names the setting that is missing.
    """
    if plan.run.activation_checkpoint.mode == "memory_budget" and not compiles_model(plan.run):
        raise UserError(
            "needs the compiler, and the model is not compiled",
            valid="compile.enable=true with model among compile.components, or another mode",
            key="activation_checkpoint.mode",
            value="memory_budget",
        )


def check_modules(plan: Plan) -> None:
    """Refuse to recompute modules that the model lacks.

    Raises:
        UserError: a name matches no module, or one without a matrix product.
    """
    key = "force_recompute_mm_shapes_by_fqns"
    found = [
        (name, module) for name, module in plan.model.named_modules() if name.startswith("layers.")
    ]
    for part in plan.run.activation_checkpoint.engine.get(key, ()):
        named = [(name, module) for name, module in found if part in name]
        if part in _RECOMPUTED or (named and all(_is_linear(module) for _, module in named)):
            continue
        other = next((name for name, module in named if not _is_linear(module)), None)
        raise UserError(
            f"is no linear layer: {other}" if other else "is in the name of no layer of this model",
            key=f"activation_checkpoint.{key}",
            value=part,
        )


_RECOMPUTED = ("moe.router.gate",)
"""torchtitan's default; not all models have it."""


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)
