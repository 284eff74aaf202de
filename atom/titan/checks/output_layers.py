"""Check that the logits are the output layer's product with the hidden states, and nothing more.

A chunked loss calls the output layer itself, and a fused one computes its product. Both skip
operations of the model after the layer; a fused loss also skips extra work of the layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchtitan.components.loss import ChunkedLossWrapper
from torchtitan.models.common.decoder import Decoder

from atom.errors import UserError
from atom.kernels.output_layer import beside_product
from atom.titan.checks.plan import Plan
from atom.titan.kernels import LINEAR_CROSS_ENTROPY, UnfitError

DECLARES = "loss_from_hidden"
"""Attribute of a model class with a custom forward.

It declares that the forward returns the output layer's input if ``_skip_lm_head`` is set, and
otherwise the output layer's result.
"""


def check(plan: Plan) -> None:
    """Refuse a chunked loss that would differ from the loss of the model's logits.

    Raises:
        UserError: names what the model does with its logits.
    """
    loss = plan.config.loss
    if not isinstance(loss, ChunkedLossWrapper.Config) or _fused(plan.config):
        return
    if problem := beside_layer(plan.model, getattr(plan.model, "lm_head", None)):
        raise UserError(
            f"applies the output layer in pieces, and {problem}",
            valid="1",
            key="loss.num_chunks",
            value=loss.num_chunks,
        )


def check_fused(config: Any, model: nn.Module) -> None:
    """Refuse a kernel with a loss that would differ from the loss of the model's logits.

    Args:
        config: a ``Trainer.Config`` of ATOM's, with the kernels in place.
        model: its model.

    Raises:
        UnfitError: names what the model, or its output layer, does besides the product.
    """
    if not isinstance(config.loss, ChunkedLossWrapper.Config) or not _fused(config):
        return
    head = getattr(model, "lm_head", None)
    problem = beside_layer(model, head)
    if problem is None and head is not None:
        problem = beside_product(head)
    if problem is not None:
        raise UnfitError(LINEAR_CROSS_ENTROPY, f"computes the output layer itself, and {problem}")


def _fused(config: Any) -> bool:
    return LINEAR_CROSS_ENTROPY in config.replaced


def beside_layer(model: nn.Module, head: nn.Module | None) -> str | None:
    """Return what a model does with its logits after its output layer, or None."""
    kind = type(model)
    if head is None:
        return f"{kind.__name__} has none (lm_head)"
    if kind.forward is Decoder.forward or getattr(kind, DECLARES, False):
        return None
    return f"{kind.__name__} has its own forward, which may change the logits"
