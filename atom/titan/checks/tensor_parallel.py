"""Check that tensor parallelism divides the heads and the vocabulary of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from atom.errors import UserError
from atom.titan.checks.plan import LaidOut


def check(plan: LaidOut) -> None:
    """Refuse a degree that does not divide the heads or the vocabulary.

    Raises:
        UserError: names the number that the degree must divide.
    """
    degree = plan.parallelism.tensor_parallel_degree
    if degree == 1:
        return
    for attention in _attentions(plan.model_config):
        heads = attention.n_heads
        kv_heads = getattr(attention, "n_kv_heads", None) or heads
        for what, number in (("query heads", heads), ("key and value heads", kv_heads)):
            if number % degree:
                raise UserError(
                    f"must divide the model's {number} {what}",
                    key="parallelism.tensor_parallel_degree",
                    value=degree,
                )
    vocab_size = getattr(plan.model_config, "vocab_size", 0)
    if vocab_size % degree:
        hint = "; valid: a tokenizer with a multiple of it"
        if hasattr(plan.architecture, "vocab_size"):
            hint = "; architecture.vocab_size can be set to a multiple"
        raise UserError(
            f"must divide the vocabulary of {vocab_size}{hint}",
            key="parallelism.tensor_parallel_degree",
            value=degree,
        )


def _attentions(model: Any) -> Iterator[Any]:
    """Yield the attention modules in the layers of ``model``."""
    for layer in getattr(model, "layers", ()):
        attention = getattr(layer, "attention", None)
        if hasattr(attention, "n_heads"):
            yield attention
