"""Check that every module of a model declares the sharding of its weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from atom.errors import UserError
from atom.titan.checks.plan import Plan

_WITHOUT = "partial_dtensor"
"""The backend under which FSDP shards weights without a declaration."""


def check(plan: Plan) -> None:
    """Refuse a model that lacks the sharding of a module, or of one of its weights.

    A model without any declared sharding leaves it to its own parallelize function.

    Raises:
        UserError: names the module.
    """
    modules = [(name, module, _sharding(module)) for name, module in plan.model.named_modules()]
    if all(sharding is None for _, _, sharding in modules):
        return
    for name, module, sharding in modules:
        own = [n for n, _ in module.named_parameters(recurse=False)]
        if sharding is not None:
            own += [n for n, _ in module.named_buffers(recurse=False)]
            missing = [weight for weight in own if weight not in sharding.state_shardings]
        else:
            needed = plan.world_size > 1 and plan.parallelism.spmd_backend != _WITHOUT
            missing = own if needed else []
        if missing:
            where = "state_shardings has no" if sharding is not None else "no sharding_config for"
            raise UserError(
                f"its model's {name} ({type(module).__name__}) cannot be laid out: {where} "
                f"{', '.join(missing)}; update_from_config of the architecture sets it",
                key="architecture.name",
                value=plan.run.architecture.name,
            )


def _sharding(module: nn.Module) -> Any:
    return getattr(module, "_sharding_config", None)
