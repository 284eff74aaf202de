"""What every decoder asks of its run, for the ``build`` of an architecture. No torch."""

from __future__ import annotations

from atom.errors import UserError
from atom.plugin import ArchitectureContext


def vocabulary(wanted: int | None, context: ArchitectureContext) -> int:
    """Return the rows of the embedding: ``architecture.vocab_size``, or the tokenizer's ids.

    Raises:
        UserError: the tokenizer has more ids than ``wanted``.
    """
    size = wanted or context.vocab_size
    if size < context.vocab_size:
        raise UserError(
            f"the tokenizer has {context.vocab_size} ids; valid: null (as many as the tokenizer) "
            f"or at least {context.vocab_size}",
            key="architecture.vocab_size",
            value=size,
        )
    return size


def check_reach(max_seq_len: int, context: ArchitectureContext) -> None:
    """Refuse sequences that are longer than the model's positions reach.

    Raises:
        UserError: ``training.seq_len`` is above ``architecture.max_seq_len``.
    """
    if max_seq_len < context.seq_len:
        raise UserError(
            f"this model's RoPE reaches {max_seq_len} tokens (architecture.max_seq_len)",
            key="training.seq_len",
            value=context.seq_len,
        )
