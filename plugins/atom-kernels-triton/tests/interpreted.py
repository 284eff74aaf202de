"""The kernels' functions against float64, for what the conformance suite does not look at.

``test_numerics.py`` runs this in Triton's interpreter, in a process of its own: Triton decides at
import. Where there is a GPU, ``pytest tests/interpreted.py`` runs the same there.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from atom_kernels_triton import cross_entropy as losses
from atom_kernels_triton import feed_forward, rms_norm, rope

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DTYPES = list(TOLERANCE)
EPS = 1e-5


def made(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_()


def close(
    found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, within: float | None = None
) -> None:
    assert found.dtype == dtype
    scale = expected.abs().max().clamp(min=1e-30)
    assert (found.double() - expected).abs().max() <= (within or TOLERANCE[dtype]) * scale


def compare(
    kernel: Callable[..., torch.Tensor], formula: Callable[..., torch.Tensor], *inputs: torch.Tensor
) -> None:
    """Compare outputs and gradients; the formula computes in float64."""
    exact = [each.detach().double().requires_grad_() for each in inputs]
    found, expected = kernel(*inputs), formula(*exact)
    close(found, expected, inputs[0].dtype)
    weight = made(*expected.shape, seed=9).detach()
    gradients = torch.autograd.grad(found, inputs, weight.to(found.dtype))
    for gradient, other, each in zip(
        gradients, torch.autograd.grad(expected, exact, weight.double()), inputs, strict=True
    ):
        close(gradient, other, each.dtype, within=TOLERANCE[inputs[0].dtype])


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


# ---------------------------------------------------------------------------- RMSNorm


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_with_the_residual_added(dtype: torch.dtype) -> None:
    def kernel(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.stack(rms_norm.add_rms_norm(x, residual, weight, EPS))

    def formula(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.stack([norm(x + residual, weight), x + residual])

    inputs = (made(2, 7, 33, dtype=dtype), made(2, 7, 33, dtype=dtype, seed=1))
    compare(kernel, formula, *inputs, made(33, dtype=dtype, seed=2))


def test_rms_norm_without_a_weight_and_with_one_of_another_dtype() -> None:
    x, weight = made(5, 12, dtype=torch.bfloat16), made(12, seed=1)
    compare(lambda x: rms_norm.rms_norm(x, None, EPS), lambda x: F.rms_norm(x, (12,), eps=EPS), x)
    compare(lambda x, w: rms_norm.rms_norm(x, w, EPS), norm, x, weight)


def test_rms_norm_of_large_and_of_no_numbers() -> None:
    compare(
        lambda x, w: rms_norm.rms_norm(x, w, EPS),
        norm,
        (1e4 * made(3, 8, dtype=torch.bfloat16)).detach().requires_grad_(),
        made(8, dtype=torch.bfloat16, seed=1),
    )
    zeros = torch.zeros(3, 8, device=DEVICE, requires_grad=True)
    compare(
        lambda x: rms_norm.rms_norm(x, None, EPS), lambda x: F.rms_norm(x, (8,), eps=EPS), zeros
    )


def test_rms_norm_gives_the_same_bits_again() -> None:
    x, weight = made(40, 24), made(24, seed=1)

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(rms_norm.rms_norm(x, weight, EPS).square().sum(), (x, weight))

    for one, other in zip(gradients(), gradients(), strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------------------- no rows


def test_no_rows_are_no_error() -> None:
    x, weight = made(0, 8), made(8, seed=1)
    y = rms_norm.rms_norm(x, weight, EPS)
    y.sum().backward()
    assert y.shape == (0, 8)
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert feed_forward.silu_mul(x, x).shape == (0, 8)
    q = made(0, 3, 2, 8)
    cache = torch.ones(4, 4, dtype=torch.complex64, device=DEVICE)
    assert rope.rope(q, q, cache, None, halves=False)[0].shape == q.shape
    labels = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert losses.cross_entropy(x, labels) == 0
    assert losses.linear_cross_entropy(x, made(5, 8), labels) == 0


# ---------------------------------------------------------------------------- SwiGLU, RoPE


def test_silu_mul_of_large_numbers_is_finite() -> None:
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], device=DEVICE, requires_grad=True)
    compare(feed_forward.silu_mul, lambda gate, up: F.silu(gate) * up, gate, made(1, 5))


@pytest.mark.parametrize("halves", [False, True])
def test_rope_without_positions_and_with_positions_for_all_sequences(halves: bool) -> None:
    q, k = made(2, 5, 3, 6), made(2, 5, 1, 6, seed=1)
    angles = torch.outer(torch.arange(9.0), torch.tensor([1.0, 0.3, 0.1])).to(DEVICE)
    cache = (
        torch.cat([angles.cos(), angles.cos(), angles.sin(), angles.sin()], dim=1)
        if halves
        else torch.polar(torch.ones_like(angles), angles)
    )
    counted = torch.arange(5, device=DEVICE)
    for given, positions in ((None, counted), (counted[None] + 3, counted + 3)):
        found = rope.rope(q, k, cache, given, halves=halves)
        again = rope.rope(q, k, cache, positions.expand(2, -1), halves=halves)
        assert all(map(torch.equal, found, again))
    # The cache has 9 positions: only the first of these tokens has one.
    for rotated in rope.rope(q, k, cache, counted[None] + 8, halves=halves):
        assert rotated[:, 0].isfinite().all()
        assert rotated[:, 1:].isnan().all()


# ---------------------------------------------------------------------------- losses


def labelled(rows: int, vocabulary: int) -> torch.Tensor:
    labels = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(3))
    labels[1::4] = losses.IGNORE_INDEX
    return labels.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows_a_piece", [3, 64])
def test_linear_cross_entropy(dtype: torch.dtype, rows_a_piece: int) -> None:
    x, weight = made(10, 16, dtype=dtype), made(37, 16, dtype=dtype, seed=1)
    labels = labelled(10, 37)
    scale = torch.tensor(0.125)
    found = losses.linear_cross_entropy(x, weight, labels, scale, rows_a_piece=rows_a_piece)
    exact = [each.detach().double().requires_grad_() for each in (x, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, labels, reduction="sum") * 0.125
    assert abs(found.item() / expected.item() - 1) < TOLERANCE[dtype]
    gradients = torch.autograd.grad(3 * found, (x, weight))
    for gradient, other in zip(gradients, torch.autograd.grad(3 * expected, exact), strict=True):
        close(gradient, other, dtype)


def test_cross_entropy_of_large_logits() -> None:
    logits = torch.tensor(
        [[1e4, -1e4, 0.0], [-torch.inf, 2.0, 2.0], [5e4, 5e4, -torch.inf]], device=DEVICE
    ).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    labels = torch.tensor([2, 1, 0], device=DEVICE)
    found = losses.cross_entropy(logits, labels)
    expected = F.cross_entropy(exact, labels, reduction="sum")
    close(found.detach(), expected.detach(), torch.float32)
    (gradient,) = torch.autograd.grad(found, logits)
    close(gradient, torch.autograd.grad(expected, exact)[0], torch.float32)


def test_the_gradient_takes_the_place_of_the_logits_once() -> None:
    logits, labels = made(6, 11), labelled(6, 11)
    with torch.no_grad():
        before = logits.clone()
        losses.cross_entropy(logits.detach(), labels)
        assert torch.equal(before, logits)  # no gradient is wanted: nothing is written
    found = losses.cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(found, logits, retain_graph=True)
    assert gradient.data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="no second backward pass"):
        torch.autograd.grad(found, logits)


def test_the_fused_loss_is_torchtitans_chunked_one() -> None:
    pytest.importorskip("torchtitan")
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
    from torchtitan.models.common import Linear

    from atom_kernels_triton import loss

    weight = made(37, 16, seed=1)
    head = Linear.Config(in_features=16, out_features=37).build().to(DEVICE)
    head.load_state_dict({"weight": weight.detach()})
    x, labels = made(2, 8, 16), labelled(16, 37).view(2, 8)
    tokens = torch.tensor(13.0, device=DEVICE)
    config = ChunkedLossWrapper.Config(num_chunks=2, loss_fn=CrossEntropyLoss.Config())
    found = []
    for each in (config, loss.triton_linear_cross_entropy(config)):
        module = each.build()
        module.set_lm_head(head)
        head.weight.grad = None
        leaf = x.detach().requires_grad_()
        value, _ = module(leaf, labels, tokens)
        value.backward()
        found.append((value.detach(), leaf.grad, head.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert head(x.detach()).shape == (2, 8, 37)  # the output layer is itself again


# ---------------------------------------------------------------------------- custom operations


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [
        (rms_norm._rms_norm, lambda: (made(3, 8), made(8, seed=1), EPS)),
        (rms_norm._add_rms_norm, lambda: (made(3, 8), made(3, 8, seed=2), made(8, seed=1), EPS)),
        (feed_forward._silu_mul, lambda: (made(3, 8), made(3, 8, seed=1))),
        (
            rope._rope,
            lambda: (
                made(1, 3, 2, 8),
                made(1, 3, 1, 8, seed=1),
                made(4, 8).detach(),
                torch.arange(3, device=DEVICE)[None],
                False,
                False,
            ),
        ),
        (
            losses._cross_entropy_,
            lambda: (made(3, 8).detach(), labelled(3, 8), torch.ones((), device=DEVICE), True),
        ),
    ],
    ids=["rms_norm", "add_rms_norm", "silu_mul", "rope", "cross_entropy_"],
)
def test_fake_implementations_and_gradients_are_as_torch_wants_them(
    operation: object, arguments: Callable[[], tuple[object, ...]]
) -> None:
    """What compile and activation checkpointing rely on."""
    torch.library.opcheck(
        operation,  # type: ignore[arg-type]
        arguments(),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
