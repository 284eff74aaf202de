"""Check how a layout divides the experts of a model, and settings that need experts."""

from __future__ import annotations

from typing import Any

from atom.errors import UserError
from atom.titan.checks.division import names_of
from atom.titan.checks.plan import LaidOut, Plan

_GROUPED = 8
"""Row multiple of torch's grouped matrix product: 16 bytes, 8 numbers in bfloat16."""


def check_division(plan: LaidOut) -> None:
    """Refuse a degree that does not divide a layer's experts, or the width of an expert.

    With expert parallelism each rank holds whole experts; without it, tensor parallelism shards
    each.

    Raises:
        UserError: names the number that the degree must divide.
    """
    expert = plan.parallelism.expert_parallel_degree
    tensor = plan.parallelism.tensor_parallel_degree
    layers = _mixtures(plan.model_config)
    if expert > 1 and not layers:
        raise UserError(
            "this model has no experts to share out",
            valid="1",
            key="parallelism.expert_parallel_degree",
            value=expert,
        )
    for layer in layers:
        width = layer.routed_experts.inner_experts.hidden_dim
        if layer.num_experts % expert:
            raise UserError(
                f"must divide the {layer.num_experts} experts of a layer",
                key="parallelism.expert_parallel_degree",
                value=expert,
            )
        if expert == 1 and width % tensor:
            raise UserError(
                f"must divide the experts' width of {width}; or distribute whole experts with "
                "parallelism.expert_parallel_degree",
                key="parallelism.tensor_parallel_degree",
                value=tensor,
            )
        local = width if expert > 1 else width // tensor
        for what, whole, size in (
            ("the model's width", plan.model_config.dim, plan.model_config.dim),
            ("the experts' width a rank", width, local),
        ):
            if size % _GROUPED:
                names = names_of(whole, plan.architecture)
                raise UserError(
                    f"{what} is {size} and must be a multiple of {_GROUPED}, for torch's grouped "
                    "matrix product",
                    **({"key": names[0], "value": whole} if names else {}),
                )


def check_load_balance(plan: Plan) -> None:
    """Refuse expert load balancing for a model without experts.

    Raises:
        UserError: the setting has no effect.
    """
    if plan.run.debug.engine.get("moe_force_load_balance") and not _mixtures(plan.model_config):
        raise UserError(
            "has no effect on a model without experts",
            valid="false",
            key="debug.moe_force_load_balance",
            value=True,
        )


def _mixtures(model: Any) -> list[Any]:
    """Return the mixtures of experts in the layers of a model config."""
    mixtures = [getattr(layer, "moe", None) for layer in getattr(model, "layers", ())]
    return [mixture for mixture in mixtures if mixture is not None]
