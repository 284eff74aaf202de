"""Check the load balancer of context parallelism."""

from __future__ import annotations

from typing import Any

from torchtitan.models.common.attention import FlexAttention
from torchtitan.models.common.decoder import Decoder

from atom.errors import UserError
from atom.titan.checks.plan import Plan
from atom.titan.saved_model import on_meta

LOAD_BALANCERS = ("headtail", "ptrr")
"""Load balancers of torchtitan's context parallelism; None is also valid."""

_KEY = "parallelism.context_parallel_load_balancer"


def check_name(plan: Plan) -> None:
    """Refuse a load balancer that torchtitan does not have.

    Raises:
        UserError: names those that it has.
    """
    balancer = plan.parallelism.context_parallel_load_balancer
    if balancer is not None and balancer not in LOAD_BALANCERS:
        raise UserError(
            "there is no such load balancer",
            valid=f"{', '.join(LOAD_BALANCERS)}, null",
            key=_KEY,
            value=balancer,
        )


def check_masks(plan: Plan) -> None:
    """Refuse PTRR if attention has no block mask, which PTRR computes the load from.

    Raises:
        UserError: names the alternatives.
    """
    parallelism, model, name = plan.parallelism, plan.config.model_spec.model, "ptrr"
    mask = parallelism.context_parallel_ptrr_mask_key
    if mask is not None and not _several_masks(model):
        raise UserError(
            "has no effect on a model with one attention mask",
            valid="null",
            key="parallelism.context_parallel_ptrr_mask_key",
            value=mask,
        )
    if parallelism.context_parallel_degree == 1:
        return
    if parallelism.context_parallel_load_balancer != name:
        return
    attention = getattr(model, "first_attention", None)
    inner = getattr(attention, "inner_attention", None)
    if not isinstance(inner, FlexAttention.Config):
        raise UserError(
            "distributes the blocks of flex attention's mask, and this model's attention has none",
            valid="headtail, null",
            key=_KEY,
            value=name,
        )
    size = inner.block_size
    if not isinstance(size, int) and size[0] != size[1]:
        raise UserError(
            f"needs square blocks in the attention mask, and this kernel's are {size[0]} x "
            f"{size[1]}",
            valid="headtail, null, or another kernels.attention",
            key=_KEY,
            value=name,
        )
    if parallelism.context_parallel_ptrr_mask_key is None and _several_masks(model):
        raise UserError(
            "this model has several attention masks, and "
            "parallelism.context_parallel_ptrr_mask_key must name the one to balance",
            valid="its name, or headtail or null here",
            key=_KEY,
            value=name,
        )


def _several_masks(model: Any) -> bool:
    """Return whether the model makes its masks itself; torchtitan's method makes one mask."""
    method = getattr(type(on_meta(model)), "get_attention_masks", None)
    return method is not Decoder.get_attention_masks
