"""Check that a layout divides the sequence length."""

from __future__ import annotations

from typing import Any

from torchtitan.models.common.attention import FlexAttention

from atom.errors import UserError
from atom.titan.checks.plan import LaidOut, Plan


def check_division(plan: LaidOut) -> None:
    """Refuse a sequence length that the ranks cannot share evenly.

    Raises:
        UserError: names what the length must be a multiple of.
    """
    training, parallelism = plan.training, plan.parallelism
    # Expert parallelism shards tokens along the sequence, with or without sequence parallelism.
    split = parallelism.enable_sequence_parallel or parallelism.expert_parallel_degree > 1
    tensor = parallelism.tensor_parallel_degree if split else 1
    context = parallelism.context_parallel_degree
    divisor = tensor * (2 * context if context > 1 else 1)
    if training.seq_len % divisor:
        raise UserError(
            f"must be a multiple of {divisor} (tensor_parallel_degree {tensor}"
            + (f" x 2 x context_parallel_degree {context})" if context > 1 else ")"),
            key="training.seq_len",
            value=training.seq_len,
        )


def check_mask_blocks(plan: Plan) -> None:
    """Refuse a share of the sequence that ends within a block of the attention mask.

    Raises:
        UserError: names what the length must be a multiple of.
    """
    config = plan.config
    degree = config.parallelism.context_parallel_degree
    check_blocks(config.model_spec.model, degree, config.training.seq_len)


def check_blocks(model: Any, degree: int, seq_len: int) -> None:
    """Refuse ``degree`` ranks that share a sequence, if one's share ends within a mask's block.

    Raises:
        UserError: names what the length must be a multiple of.
    """
    attention = getattr(model, "first_attention", None)
    inner = getattr(attention, "inner_attention", None)
    if degree == 1 or not isinstance(inner, FlexAttention.Config):
        return
    block = inner.block_size if isinstance(inner.block_size, int) else inner.block_size[0]
    if seq_len % (degree * block):
        raise UserError(
            f"must be a multiple of {degree * block}: context_parallel_degree {degree} x the "
            f"attention mask's blocks of {block} tokens",
            key="training.seq_len",
            value=seq_len,
        )
