"""Compute SwiGLU, ``silu(gate) · up``, in one kernel, forward and backward.

Suffixes: R rows (tokens), F width of the feed-forward.
"""

# ruff: noqa: ARG001  a fake implementation takes what its operation takes

from __future__ import annotations

import torch
import triton
import triton.language as tl

from atom_kernels_triton.rows import rows_of
from atom_kernels_triton.tuning import Launch, launch

_WIDEST = 2048
"""Columns of one tile; rows and columns are independent."""


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    gate, up, out, n_rows, width, gate_stride, up_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (columns < width)[None, :]
    g = tl.load(gate + rows[:, None] * gate_stride + columns[None, :], mask=inside, other=0.0)
    u = tl.load(up + rows[:, None] * up_stride + columns[None, :], mask=inside, other=0.0)
    g = g.to(tl.float32)
    result = g * tl.sigmoid(g) * u.to(tl.float32)
    place = out + rows[:, None] * width + columns[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad, gate, up, grad_gate, grad_up, n_rows, width, grad_stride, gate_stride, up_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (columns < width)[None, :]
    d = tl.load(grad + rows[:, None] * grad_stride + columns[None, :], mask=inside, other=0.0)
    g = tl.load(gate + rows[:, None] * gate_stride + columns[None, :], mask=inside, other=0.0)
    u = tl.load(up + rows[:, None] * up_stride + columns[None, :], mask=inside, other=0.0)
    d, g, u = d.to(tl.float32), g.to(tl.float32), u.to(tl.float32)
    sigmoid = tl.sigmoid(g)
    place = rows[:, None] * width + columns[None, :]
    of_gate = d * u * sigmoid * (1.0 + g * (1.0 - sigmoid))
    tl.store(grad_gate + place, of_gate.to(grad_gate.dtype.element_ty), mask=inside)
    tl.store(grad_up + place, (d * g * sigmoid).to(grad_up.dtype.element_ty), mask=inside)


def _grid(rows: int, width: int, how: Launch) -> tuple[tuple[int, int], int]:
    block = min(_WIDEST, triton.next_power_of_2(width))
    return (triton.cdiv(rows, how.rows), triton.cdiv(width, block)), block


@torch.library.custom_op("atom_triton::silu_mul", mutates_args=())
def _silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate_RF, up_RF = rows_of(gate), rows_of(up)
    rows, width = gate_RF.shape
    out_RF = gate_RF.new_empty(rows, width)

    def run(how: Launch) -> None:
        grid, block = _grid(rows, width, how)
        _forward[grid](
            gate_RF,
            up_RF,
            out_RF,
            rows,
            width,
            gate_RF.stride(0),
            up_RF.stride(0),
            ROWS=how.rows,
            BLOCK=block,
            num_warps=how.num_warps,
        )

    if out_RF.numel():
        run(launch("silu_mul", min(width, _WIDEST), gate_RF, run))
    return out_RF.view(gate.shape)


@_silu_mul.register_fake
def _(gate, up):  # type: ignore[no-untyped-def]
    return gate.new_empty(gate.shape)


@torch.library.custom_op("atom_triton::silu_mul_backward", mutates_args=())
def _silu_mul_backward(
    grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    grad_RF, gate_RF, up_RF = rows_of(grad), rows_of(gate), rows_of(up)
    rows, width = gate_RF.shape
    grad_gate_RF, grad_up_RF = (gate_RF.new_empty(rows, width) for _ in range(2))

    def run(how: Launch) -> None:
        grid, block = _grid(rows, width, how)
        _backward[grid](
            grad_RF,
            gate_RF,
            up_RF,
            grad_gate_RF,
            grad_up_RF,
            rows,
            width,
            grad_RF.stride(0),
            gate_RF.stride(0),
            up_RF.stride(0),
            ROWS=how.rows,
            BLOCK=block,
            num_warps=how.num_warps,
        )

    if grad_gate_RF.numel():
        run(launch("silu_mul_backward", min(width, _WIDEST), gate_RF, run))
    return grad_gate_RF.view(gate.shape), grad_up_RF.view(gate.shape)


@_silu_mul_backward.register_fake
def _(grad, gate, up):  # type: ignore[no-untyped-def]
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    return _silu_mul_backward(grad, *ctx.saved_tensors)


_silu_mul.register_autograd(_differentiate, setup_context=_keep)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return ``silu(gate) · up`` of two tensors of one shape and dtype."""
    out: torch.Tensor = _silu_mul(gate, up)
    return out


def feed_forward(
    x_RD: torch.Tensor, w1_FD: torch.Tensor, w2_DF: torch.Tensor, w3_FD: torch.Tensor
) -> torch.Tensor:
    """Return ``silu_mul(x W1ᵀ, x W3ᵀ) W2ᵀ``."""
    gate_RF, up_RF = (torch.nn.functional.linear(x_RD, each) for each in (w1_FD, w3_FD))
    return torch.nn.functional.linear(silu_mul(gate_RF, up_RF), w2_DF)
