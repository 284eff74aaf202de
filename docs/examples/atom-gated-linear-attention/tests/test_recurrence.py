"""The chunks against the recurrence written out, forward and backward, in float64."""

from __future__ import annotations

import pytest
import torch
from atom_gated_linear_attention.recurrence import gated_linear_attention

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_g: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Token by token, as the paper's equation 3 has it."""
    batch, length, heads, width = q.shape
    state = torch.zeros(batch, heads, width, v.shape[-1], dtype=q.dtype)
    answers = []
    for t in range(length):
        state = state * (positions[:, t] != 0)[:, None, None, None]
        state = log_g[:, t].exp()[..., None] * state + k[:, t, :, :, None] * v[:, t, :, None]
        answers.append((q[:, t, :, :, None] * state).sum(-2))
    return torch.stack(answers, 1)


def inputs(length: int, *, gate: float = 1.0) -> Tensors:
    torch.manual_seed(0)
    q, k, log_g = (torch.randn(2, length, 3, 4, dtype=torch.float64) for _ in range(3))
    v = torch.randn(2, length, 3, 5, dtype=torch.float64)
    return q, k, v, -gate * log_g.exp()


@pytest.mark.parametrize("length", [1, 7, 16, 17, 50])
def test_chunks_are_the_recurrence(length: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(length)]
    first = min(length, 5)
    positions = torch.stack(
        [torch.arange(length), torch.tensor([*range(first), *range(length - first)])]
    )
    ours = gated_linear_attention(*tensors, positions, chunk=8)
    reference = written_out(*tensors, positions)
    torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-12)

    weight = torch.randn_like(reference)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), tensors),
        torch.autograd.grad((reference * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_gates_that_close_at_once_overflow_nothing() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(64, gate=1e4)]
    answers = gated_linear_attention(*tensors)
    assert answers.isfinite().all()
    for gradient in torch.autograd.grad(answers.sum(), tensors):
        assert gradient.isfinite().all()


def test_a_chunk_of_another_size_gives_the_same() -> None:
    tensors = inputs(40)
    for chunk in (1, 4, 64):
        torch.testing.assert_close(
            gated_linear_attention(*tensors, chunk=chunk), gated_linear_attention(*tensors)
        )
