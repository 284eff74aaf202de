"""Compute cross-entropy with a gradient that overwrites the logits; fuse it with the output layer.

Losses and gradients are summed over tokens and multiplied by ``scale``, so dividing by the number
of tokens needs no extra pass. Suffixes: R rows (tokens), D width, V vocabulary.
"""

# ruff: noqa: ARG001  a fake implementation takes what its operation takes

from __future__ import annotations

import torch
import triton
import triton.language as tl

from atom_kernels_triton.tuning import Launch, launch

IGNORE_INDEX = -100
_WIDEST = 4096
_SMALLEST_PIECE = 2048
"""Minimum rows of a chunk.

With fewer, moving the weight's gradient takes longer than the product added to it.
"""

_MOST_PIECES = 8


@triton.jit
def _loss_and_gradient(  # type: ignore[no-untyped-def]
    logits, labels, scale, losses, width, stride, ignored,
    WRITES: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute one row's loss, and with ``WRITES`` write the gradient over its logits."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    label = tl.load(labels + row)
    factor = tl.load(scale)
    columns = tl.arange(0, BLOCK)
    if label == ignored:
        tl.store(losses + row, 0.0)
        if WRITES:
            for first in range(0, width, BLOCK):
                at = first + columns
                zeros = tl.zeros((BLOCK,), logits.dtype.element_ty)
                tl.store(start + at, zeros, mask=at < width)
    else:
        # Before the first loop: its barriers keep other warps from overwriting it.
        of_label = tl.load(start + label).to(tl.float32)
        # The running maximum of the logits, and the sum of the exponentials relative to it.
        largest = tl.full((), float("-inf"), tl.float32)
        total = tl.zeros((), tl.float32)
        for first in tl.range(0, width, BLOCK, num_stages=STAGES):
            at = first + columns
            values = tl.load(start + at, mask=at < width, other=float("-inf")).to(tl.float32)
            above = tl.maximum(largest, tl.max(values, axis=0))
            origin = tl.where(above == float("-inf"), 0.0, above)
            total = total * tl.exp(largest - origin) + tl.sum(tl.exp(values - origin), axis=0)
            largest = above
        # Subtract large numbers from each other first: adding the logarithm before would lose
        # digits.
        tl.store(losses + row, (largest - of_label + tl.log(total)) * factor)
        if WRITES:
            for first in tl.range(0, width, BLOCK, num_stages=STAGES):
                at = first + columns
                values = tl.load(start + at, mask=at < width, other=float("-inf")).to(tl.float32)
                share = tl.exp(values - largest) / total
                gradient = share - tl.where(at == label, 1.0, 0.0)
                gradient = (gradient * factor).to(logits.dtype.element_ty)
                tl.store(start + at, gradient, mask=at < width)


@triton.jit
def _multiply(values, factor, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    by = tl.load(factor)
    if by != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        here = tl.load(values + at, mask=at < size, other=0.0).to(tl.float32) * by
        tl.store(values + at, here.to(values.dtype.element_ty), mask=at < size)


@torch.library.custom_op("atom_triton::cross_entropy_", mutates_args=("logits",))
def _cross_entropy_(
    logits: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor, writes: bool
) -> torch.Tensor:
    """Return each row's loss in float32; with ``writes``, logits (R, V) become the gradient."""
    rows, width = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)
    if losses.numel():
        block = min(_WIDEST, triton.next_power_of_2(width))

        def run(how: Launch) -> None:
            _loss_and_gradient[(rows,)](
                logits,
                labels,
                scale,
                losses,
                width,
                logits.stride(0),
                IGNORE_INDEX,
                WRITES=writes,
                BLOCK=block,
                STAGES=how.stages,
                num_warps=how.num_warps,
            )

        run(
            launch(
                "cross_entropy",
                block,
                logits,
                run,
                rows=(1,),
                stages=(1, 2, 3),
                overwrites=writes,
            )
        )
    return losses


@_cross_entropy_.register_fake
def _(logits, labels, scale, writes):  # type: ignore[no-untyped-def]
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


@torch.library.custom_op("atom_triton::multiply_", mutates_args=("values",))
def _multiply_(values: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply contiguous ``values`` in place; a factor of 1.0 needs no pass over them."""
    if values.numel():
        block = 4096
        grid = (triton.cdiv(values.numel(), block),)
        _multiply[grid](values, factor, values.numel(), BLOCK=block, num_warps=8)


@_multiply_.register_fake
def _(values, factor):  # type: ignore[no-untyped-def]
    return None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_RV, labels_R, scale):  # type: ignore[no-untyped-def]
        writes = logits_RV.requires_grad
        values_RV = logits_RV.detach()
        if values_RV.stride(-1) != 1:
            values_RV = values_RV.contiguous()
        losses_R = _cross_entropy_(values_RV, labels_R.contiguous(), scale, writes)
        if writes:
            # An attribute: autograd would raise for a saved tensor that was modified in place.
            ctx.gradient_RV = values_RV
        return losses_R.sum()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gradient_RV = ctx.gradient_RV
        if gradient_RV is None:
            raise RuntimeError("the gradient was released: there is no second backward pass")
        ctx.gradient_RV = None
        if gradient_RV.is_contiguous():
            _multiply_(gradient_RV, grad.float())
        else:
            gradient_RV = gradient_RV * grad
        return gradient_RV, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RD, weight_VD, labels_R, scale, rows_a_piece):  # type: ignore[no-untyped-def]
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        writes = needs_x or needs_weight
        grad_x_RD = torch.empty_like(x_RD) if needs_x else None
        grad_weight_VD = torch.empty_like(weight_VD) if needs_weight else None
        weight = weight_VD.to(x_RD.dtype)
        total = x_RD.new_zeros((), dtype=torch.float32)
        space = x_RD.new_empty(min(rows_a_piece, len(x_RD)), len(weight))
        for first in range(0, len(x_RD), rows_a_piece):
            piece = slice(first, first + rows_a_piece)
            labels = labels_R[piece].contiguous()
            logits = torch.mm(x_RD[piece], weight.T, out=space[: len(labels)])
            total += _cross_entropy_(logits, labels, scale, writes).sum()
            if grad_x_RD is not None:
                torch.mm(logits, weight, out=grad_x_RD[piece])
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, logits.T, x_RD[piece], first=first == 0)
        if grad_weight_VD is not None and not len(x_RD):
            grad_weight_VD.zero_()
        ctx.gradients = (grad_x_RD, grad_weight_VD)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        if ctx.gradients is None:
            raise RuntimeError("the gradients were released: there is no second backward pass")
        grad_x_RD, grad_weight_VD = ctx.gradients
        ctx.gradients = None
        for each in (grad_x_RD, grad_weight_VD):
            if each is not None:
                _multiply_(each, grad.float())
        return grad_x_RD, grad_weight_VD, None, None, None


def _add_product(
    total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, first: bool
) -> None:
    """Add ``left @ right`` to ``total``, or store it there if ``first``."""
    if total.dtype != left.dtype:  # the weight has another dtype than the computation
        product = left @ right
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(left, right, out=total)
    else:
        total.addmm_(left, right)


def cross_entropy(
    logits_RV: torch.Tensor, labels_R: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the sum of the rows' losses, times ``scale``, in float32.

    If a gradient is required, it is written **over the logits**, which must not be read afterwards.
    Rows labelled -100 are ignored.
    """
    loss: torch.Tensor = _CrossEntropy.apply(logits_RV, labels_R, _scale(scale, logits_RV))
    return loss


def linear_cross_entropy(
    x_RD: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_R: torch.Tensor,
    scale: torch.Tensor | None = None,
    *,
    rows_a_piece: int | None = None,
) -> torch.Tensor:
    """Return ``cross_entropy(x Wᵀ)``; keep the gradients of both instead of logits.

    The computation is in the dtype of ``x``. The weight's gradient is summed over chunks in its own
    dtype: each chunk reads, writes and rounds all of it, so there are few chunks.
    """
    if rows_a_piece is None:
        rows_a_piece = max(_SMALLEST_PIECE, triton.cdiv(x_RD.shape[0], _MOST_PIECES))
    loss: torch.Tensor = _LinearCrossEntropy.apply(
        x_RD, weight_VD, labels_R, _scale(scale, x_RD), rows_a_piece
    )
    return loss


def _scale(scale: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    if scale is None:
        return torch.ones((), dtype=torch.float32, device=like.device)
    return scale.to(device=like.device, dtype=torch.float32)
