"""Compute RMSNorm, optionally fused with the residual add.

Suffixes: R rows (tokens), D width of a row. Sums are in float32 for every dtype.
"""

# ruff: noqa: ARG001  a fake implementation takes what its operation takes

from __future__ import annotations

import torch
import triton
import triton.language as tl

from atom_kernels_triton.rows import rows_of
from atom_kernels_triton.tuning import Launch, launch

_RESIDENT = 8192
"""Elements of the tiles that one H100 multiprocessor processes at once in backward.

Its registers hold no more. Each program has a partial gradient of the weight, so more programs
would cost memory.
"""

_MOST = 16
"""Maximum programs per multiprocessor, however few elements they have."""


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, residual, weight, y, total, rstd,
    n_rows, width, x_stride, residual_stride, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (columns < width)[None, :]
    out = rows[:, None] * width + columns[None, :]
    values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    if HAS_RESIDUAL:
        added = tl.load(
            residual + rows[:, None] * residual_stride + columns[None, :], mask=inside, other=0.0
        )
        # Rounded to the stored dtype, so that forward and backward see the same numbers.
        values = (values.to(tl.float32) + added.to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + out, values, mask=inside)
    values = values.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(values * values, axis=1) / width + eps)
    tl.store(rstd + rows, scale, mask=rows < n_rows)
    normal = values * scale[:, None]
    if HAS_WEIGHT:
        normal *= tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)[None, :]
    tl.store(y + out, normal.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad, x, weight, rstd, grad_total, grad_x, grad_weight,
    n_rows, width, tiles, grad_stride, x_stride, total_stride,
    HAS_TOTAL: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Process ``tiles`` tiles per program and write its partial gradient of the weight.

    The next tiles, ``STAGES`` - 1 of them, are prefetched while a tile is processed.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    w = tl.full((BLOCK,), 1.0, tl.float32)
    if HAS_WEIGHT:
        w = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
    shared = tl.zeros((BLOCK,), tl.float32)
    for tile in tl.range(tiles, num_stages=STAGES):
        rows = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < n_rows)[:, None] & (columns < width)[None, :]
        g = tl.load(grad + rows[:, None] * grad_stride + columns[None, :], mask=inside, other=0.0)
        v = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
        scale = tl.load(rstd + rows, mask=rows < n_rows, other=0.0)[:, None]
        g = g.to(tl.float32)
        normal = v.to(tl.float32) * scale
        weighted = g * w[None, :]
        mean = tl.sum(weighted * normal, axis=1)[:, None] / width
        result = (weighted - normal * mean) * scale
        if HAS_TOTAL:
            result += tl.load(
                grad_total + rows[:, None] * total_stride + columns[None, :], mask=inside, other=0.0
            ).to(tl.float32)
        place = rows[:, None] * width + columns[None, :]
        tl.store(grad_x + place, result.to(grad_x.dtype.element_ty), mask=inside)
        shared += tl.sum(g * normal, axis=0)
    if HAS_WEIGHT:
        tl.store(grad_weight + program * width + columns, shared, mask=columns < width)


def _run_forward(
    x_RD: torch.Tensor,
    residual_RD: torch.Tensor | None,
    weight_D: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, width = x_RD.shape
    y_RD = x_RD.new_empty(rows, width)
    total_RD = x_RD.new_empty(rows, width) if residual_RD is not None else x_RD
    rstd_R = x_RD.new_empty(rows, dtype=torch.float32)

    def run(how: Launch) -> None:
        _forward[(triton.cdiv(rows, how.rows),)](
            x_RD,
            residual_RD,
            weight_D,
            y_RD,
            total_RD,
            rstd_R,
            rows,
            width,
            x_RD.stride(0),
            residual_RD.stride(0) if residual_RD is not None else 0,
            eps,
            HAS_RESIDUAL=residual_RD is not None,
            HAS_WEIGHT=weight_D is not None,
            ROWS=how.rows,
            BLOCK=triton.next_power_of_2(width),
            num_warps=how.num_warps,
        )

    if y_RD.numel():
        run(launch("rms_norm", width, x_RD, run))
    return y_RD, total_RD, rstd_R


@torch.library.custom_op("atom_triton::rms_norm", mutates_args=())
def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    y_RD, _, rstd_R = _run_forward(rows_of(x), None, weight, eps)
    return y_RD.view(x.shape), rstd_R.view(x.shape[:-1])


@_rms_norm.register_fake
def _(x, weight, eps):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("atom_triton::add_rms_norm", mutates_args=())
def _add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    y_RD, total_RD, rstd_R = _run_forward(rows_of(x), rows_of(residual), weight, eps)
    return y_RD.view(x.shape), total_RD.view(x.shape), rstd_R.view(x.shape[:-1])


@_add_rms_norm.register_fake
def _(x, residual, weight, eps):  # type: ignore[no-untyped-def]
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape), rstd


@torch.library.custom_op("atom_triton::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    rstd: torch.Tensor,
    grad_total: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of ``x`` and of the weight (empty without one)."""
    grad_RD, x_RD = rows_of(grad), rows_of(x)
    total_RD = rows_of(grad_total) if grad_total is not None else None
    rows, width = x_RD.shape
    grad_x_RD = x_RD.new_empty(rows, width)
    if not grad_x_RD.numel():
        shape = weight.shape if weight is not None else (0,)
        return grad_x_RD.view(x.shape), x.new_zeros(shape, dtype=torch.float32)
    shares: list[torch.Tensor] = []

    def run(how: Launch) -> None:
        tiles_in_all = triton.cdiv(rows, how.rows)
        tile = how.rows * triton.next_power_of_2(width)
        programs = min(tiles_in_all, _programs(x.device, tile))
        tiles = triton.cdiv(tiles_in_all, programs)
        programs = triton.cdiv(tiles_in_all, tiles)
        size = (programs, width) if weight is not None else (0, 0)
        shares[:] = [x.new_empty(size, dtype=torch.float32)]
        _backward[(programs,)](
            grad_RD,
            x_RD,
            weight,
            rstd,
            total_RD,
            grad_x_RD,
            shares[0],
            rows,
            width,
            tiles,
            grad_RD.stride(0),
            x_RD.stride(0),
            total_RD.stride(0) if total_RD is not None else 0,
            HAS_TOTAL=total_RD is not None,
            HAS_WEIGHT=weight is not None,
            ROWS=how.rows,
            BLOCK=triton.next_power_of_2(width),
            STAGES=how.stages,
            num_warps=how.num_warps,
        )

    run(launch("rms_norm_backward", width, x_RD, run, stages=(1, 2, 3)))
    return grad_x_RD.view(x.shape), shares[0].sum(dim=0)


@_rms_norm_backward.register_fake
def _(grad, x, weight, rstd, grad_total):  # type: ignore[no-untyped-def]
    shape = weight.shape if weight is not None else (0,)
    return x.new_empty(x.shape), x.new_empty(shape, dtype=torch.float32)


def _programs(device: torch.device, tile: int) -> int:
    if device.type != "cuda":
        return 2
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(_MOST, _RESIDENT // tile)) * processors


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad, _grad_rstd):  # type: ignore[no-untyped-def]
    x, weight, rstd = ctx.saved_tensors
    grad_x, grad_weight = _rms_norm_backward(grad, x, weight, rstd, None)
    return grad_x, grad_weight.to(weight.dtype) if weight is not None else None, None


def _keep_sum(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, _, weight, _ = inputs
    ctx.save_for_backward(output[1], weight, output[2])
    ctx.mark_non_differentiable(output[2])


def _differentiate_sum(ctx, grad, grad_total, _grad_rstd):  # type: ignore[no-untyped-def]
    total, weight, rstd = ctx.saved_tensors
    grad_x, grad_weight = _rms_norm_backward(grad, total, weight, rstd, grad_total)
    grad_weight = grad_weight.to(weight.dtype) if weight is not None else None
    return grad_x, grad_x.clone(), grad_weight, None


_rms_norm.register_autograd(_differentiate, setup_context=_keep)
_add_rms_norm.register_autograd(_differentiate_sum, setup_context=_keep_sum)


def rms_norm(x: torch.Tensor, weight_D: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Return ``x / sqrt(mean(x²) + eps) · weight`` over the last dimension, in the dtype of ``x``.

    The weight may have another dtype than ``x``, and may be None.
    """
    y: torch.Tensor = _rms_norm(x, weight_D, eps)[0]
    return y


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight_D: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``rms_norm(x + residual)`` and ``x + residual``, both in one pass.

    The two inputs have the same shape. torchtitan adds the residual in the block's own forward, so
    no override uses this function: it is for custom blocks.
    """
    y, total, _ = _add_rms_norm(x, residual, weight_D, eps)
    return y, total
