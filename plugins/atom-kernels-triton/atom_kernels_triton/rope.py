"""Rotate queries and keys by RoPE in one launch, in both of torchtitan's conventions.

``ComplexRoPE`` rotates adjacent pairs by a complex cache (positions, H/2); ``CosSinRoPE`` rotates
element i of the first half with element i of the second by a cache (positions, 2H) of cosines and
sines. Suffixes: B sequences, L tokens, N heads, H width of a head.
"""

# ruff: noqa: ARG001  a fake implementation takes what its operation takes

from __future__ import annotations

import torch
import triton
import triton.language as tl

_HEADS = 16
"""Heads per program."""


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    q, k, cache, positions, q_out, k_out,
    length, n_q, n_k, half, n_positions,
    q_batch, q_token, q_head, k_batch, k_token, k_head, cache_row, positions_batch,
    sign,
    HALVES: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rotate ``HEADS`` heads of one token, of ``q`` and then of ``k``.

    Each thread reads and writes 16 bytes of a row: pairs are separated in registers, and halves
    take two reads. A position outside the cache makes its token NaN, and so the loss.
    """
    token = tl.program_id(0).to(tl.int64)
    batch, place = token // length, token % length
    heads = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    is_q, is_k = heads < n_q, (heads >= n_q) & (heads < n_q + n_k)
    from_q = q + batch * q_batch + place * q_token + heads * q_head
    from_k = k + batch * k_batch + place * k_token + (heads - n_q) * k_head
    to_q = q_out + (token * n_q + heads) * (2 * half)
    to_k = k_out + (token * n_k + heads - n_q) * (2 * half)
    position = tl.load(positions + batch * positions_batch + place).to(tl.int64)
    row = position * cache_row
    if HALVES:
        columns = tl.arange(0, BLOCK)[None, :]
        inside = columns < half
        at = position + 0 * columns  # a tensor: the interpreter rejects a number as a mask
        there = inside & (at >= 0) & (at < n_positions)
        cos = tl.load(cache + row + columns, mask=there, other=float("nan")).to(tl.float32)
        from_sin = cache + row + 2 * half + columns
        sin = tl.load(from_sin, mask=there, other=float("nan")).to(tl.float32)
        of_q, of_k = is_q & inside, is_k & inside
        # One of the two is 0.
        first = tl.load(from_q + columns, mask=of_q, other=0.0).to(tl.float32)
        first += tl.load(from_k + columns, mask=of_k, other=0.0).to(tl.float32)
        second = tl.load(from_q + half + columns, mask=of_q, other=0.0).to(tl.float32)
        second += tl.load(from_k + half + columns, mask=of_k, other=0.0).to(tl.float32)
        sin *= sign
        to_first = first * cos - second * sin
        to_second = second * cos + first * sin
        tl.store(to_q + columns, to_first, mask=of_q)
        tl.store(to_k + columns, to_first, mask=of_k)
        tl.store(to_q + half + columns, to_second, mask=of_q)
        tl.store(to_k + half + columns, to_second, mask=of_k)
    else:
        columns = tl.arange(0, 2 * BLOCK)[None, :]
        inside = columns < 2 * half
        at = position + 0 * columns  # a tensor: the interpreter rejects a number as a mask
        there = inside & (at >= 0) & (at < n_positions)
        turns = tl.load(cache + row + columns, mask=there, other=float("nan")).to(tl.float32)
        cos, sin = tl.split(tl.reshape(turns, (1, BLOCK, 2)))
        of_q, of_k = is_q & inside, is_k & inside
        x = tl.load(from_q + columns, mask=of_q, other=0.0).to(tl.float32)
        x += tl.load(from_k + columns, mask=of_k, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (HEADS, BLOCK, 2)))
        sin *= sign
        rotated = tl.join(first * cos - second * sin, second * cos + first * sin)
        rotated = tl.reshape(rotated, (HEADS, 2 * BLOCK))
        tl.store(to_q + columns, rotated, mask=of_q)
        tl.store(to_k + columns, rotated, mask=of_k)


@torch.library.custom_op("atom_triton::rope", mutates_args=())
def _rope(
    q: torch.Tensor,
    k: torch.Tensor,
    cache: torch.Tensor,
    positions: torch.Tensor,
    halves: bool,
    backwards: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate ``q`` and ``k``.

    ``cache`` is real, (positions, columns); ``positions`` is (1 or B, L).
    """
    batch, length, n_q, width = q.shape
    n_k = k.shape[2]
    q, k, cache, positions = (_in_rows(x) for x in (q, k, cache, positions))
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    if q_out.numel() + k_out.numel():
        heads = min(_HEADS, triton.next_power_of_2(n_q + n_k))
        _kernel[(batch * length, triton.cdiv(n_q + n_k, heads))](
            q,
            k,
            cache,
            positions,
            q_out,
            k_out,
            length,
            n_q,
            n_k,
            width // 2,
            cache.shape[0],
            *q.stride()[:3],
            *k.stride()[:3],
            cache.stride(0),
            positions.stride(0) if positions.shape[0] > 1 else 0,
            -1.0 if backwards else 1.0,
            HALVES=halves,
            HEADS=heads,
            BLOCK=triton.next_power_of_2(width // 2),
            num_warps=4,
        )
    return q_out, k_out


@_rope.register_fake
def _(q, k, cache, positions, halves, backwards):  # type: ignore[no-untyped-def]
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _in_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, _, cache, positions, ctx.halves, ctx.backwards = inputs
    ctx.save_for_backward(cache, positions)


def _differentiate(ctx, grad_q, grad_k):  # type: ignore[no-untyped-def]
    # The inverse of a rotation is its transpose.
    cache, positions = ctx.saved_tensors
    grads = _rope(grad_q, grad_k, cache, positions, ctx.halves, not ctx.backwards)
    return *grads, None, None, None, None


_rope.register_autograd(_differentiate, setup_context=_keep)


def rope(
    q_BLNH: torch.Tensor,
    k_BLNH: torch.Tensor,
    cache: torch.Tensor,
    positions_BL: torch.Tensor | None,
    *,
    halves: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return queries and keys, rotated by their positions.

    Args:
        q_BLNH: queries.
        k_BLNH: keys, with any number of heads.
        cache: as torchtitan makes it: complex (positions, H/2) for pairs, and real (positions, 2H),
            cosines before sines, for halves.
        positions_BL: rows of the cache, (B, L) or (1, L); None for 0, 1, 2, … A token with a
            position outside the cache becomes NaN.
        halves: whether to rotate halves instead of adjacent pairs.
    """
    if cache.is_complex():
        cache = torch.view_as_real(cache).flatten(1)
    if positions_BL is None:
        positions_BL = torch.arange(q_BLNH.shape[1], device=q_BLNH.device)[None]
    q, k = _rope(q_BLNH, k_BLNH, cache, positions_BL, halves, False)
    return q, k


def rope_pairs(
    q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, cache: torch.Tensor, positions_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return :func:`rope` of adjacent pairs."""
    return rope(q_BLNH, k_BLNH, cache, positions_BL, halves=False)


def rope_halves(
    q_BLNH: torch.Tensor, k_BLNH: torch.Tensor, cache: torch.Tensor, positions_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return :func:`rope` of the two halves."""
    return rope(q_BLNH, k_BLNH, cache, positions_BL, halves=True)
