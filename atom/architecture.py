"""Check sizes that every decoder shares, for the ``build`` of an architecture. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from atom.errors import UserError
from atom.plugin import ArchitectureContext

MOST_LAYERS, MOST_WIDTH, MOST_TOKENS = 10_000, 2**20, 2**30
"""Upper bounds of parameters: blocks; widths, heads, experts; tokens of a vocabulary or sequence.

They are far above any real model, and below what would exhaust the machine's memory.
"""


SoftCap = Annotated[
    float | None,
    Field(
        gt=0,
        description="soft cap of the logits, cap tanh(logits / cap), such as 30 "
        "(https://arxiv.org/abs/2408.00118); exports are refused then; null: none",
    ),
]
"""Type of the parameter ``logit_soft_cap`` of :func:`atom.titan.soft_cap.output_layer`."""


def vocabulary(wanted: int | None, context: ArchitectureContext) -> int:
    """Return the rows of the embedding:

    ``architecture.vocab_size``, or the tokenizer's number of ids.

    Raises:
        UserError: the tokenizer has more ids than ``wanted``.
    """
    size = wanted or context.vocab_size
    if size < context.vocab_size:
        raise UserError(
            f"the tokenizer has {context.vocab_size} ids",
            valid=f"null (as many as the tokenizer) or at least {context.vocab_size}",
            key="architecture.vocab_size",
            value=size,
        )
    return size


def check_reach(max_seq_len: int, context: ArchitectureContext) -> None:
    """Refuse sequences longer than the model's positional range.

    Raises:
        UserError: ``training.seq_len`` is above ``architecture.max_seq_len``.
    """
    if max_seq_len < context.seq_len:
        raise UserError(
            f"this model's RoPE reaches {max_seq_len} tokens (architecture.max_seq_len)",
            key="training.seq_len",
            value=context.seq_len,
        )


def check_heads(n_heads: int, n_kv_heads: int) -> None:
    """Refuse query heads that cannot share the key and value heads evenly.

    Raises:
        UserError: ``architecture.n_kv_heads`` does not divide ``architecture.n_heads``.
    """
    if n_heads % n_kv_heads:
        raise UserError(
            f"must divide n_heads={n_heads}", key="architecture.n_kv_heads", value=n_kv_heads
        )


def check_experts(top_k: int, num_experts: int) -> None:
    """Refuse to route a token to more experts than the model has.

    Raises:
        UserError: ``architecture.top_k`` is above ``architecture.num_experts``.
    """
    if top_k > num_experts:
        raise UserError(
            f"must be at most num_experts={num_experts}", key="architecture.top_k", value=top_k
        )


def check_head_dim(dim: int, n_heads: int) -> None:
    """Refuse a width that does not divide into heads of an even width, which RoPE needs.

    Raises:
        UserError: ``architecture.n_heads`` does not divide ``architecture.dim`` into even widths.
    """
    if dim % n_heads or (dim // n_heads) % 2:
        raise UserError(
            f"must divide dim={dim} into heads of an even width, for RoPE",
            key="architecture.n_heads",
            value=n_heads,
        )
