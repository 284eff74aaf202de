"""Liger's kernels against the references, on a CPU, by the conformance kit and beyond it.

``test_liger.py`` runs this in Triton's interpreter, in a process of its own: Triton decides at
import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist
import triton
import triton.language as tl
from liger_kernel.ops import rms_norm as liger_rms_norm
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.models.common import Linear, RMSNorm
from torchtitan.models.common.rope import CosSinRoPE
from triton.runtime import interpreter

from atom.registry.host import Host
from atom.testing.interpreter import CASES
from atom.titan.contracts import comparison as kernels
from atom.titan.contracts.cases import Case
from atom.titan.contracts.comparison import Implementation
from atom.titan.contracts.operations import contract_of
from atom.titan.contracts.sizes import ODD
from atom_kernels_adapters import liger


@triton.jit
def rsqrt(x):  # type: ignore[no-untyped-def]
    return tl.rsqrt(x)


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the interpreter what Liger's RMSNorm and SwiGLU need: numbers that are no integers as
    arguments are tensors when compiled, and CUDA's ``rsqrt`` is that of the language."""
    converted: Callable[[object], object] = interpreter._implicit_cvt

    def convert(argument: object) -> object:
        if isinstance(argument, float):
            handle = interpreter.TensorHandle(np.array([argument], np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return converted(argument)

    monkeypatch.setattr(interpreter, "_implicit_cvt", convert)
    monkeypatch.setattr(liger_rms_norm, "rsqrt", rsqrt)


HALF = ("bfloat16", "float16")
FEW = CASES[1:3]
"""Odd sizes, and transposed ones: the interpreter is slow."""


@pytest.mark.parametrize(
    ("operation", "in_float32", "dtypes"),
    [
        ("rms_norm", FEW, HALF),
        # The interpreter multiplies the bits of bfloat16, not the numbers.
        ("feed_forward", FEW, ("float16",)),
        # The conformance kit interprets these two in float32.
        ("rope_halves", (), HALF),
        ("cross_entropy", (), HALF),
    ],
)
def test_agrees_with_the_reference(
    operation: str, in_float32: tuple[Case, ...], dtypes: tuple[str, ...]
) -> None:
    host = Host.load()
    component = host.find("kernel", f"{operation}/liger")
    contract = contract_of(operation)
    found = kernels.disagreements(
        Implementation(contract, component),
        kernels.reference_of(component, contract, host),
        iter([*in_float32, *(Case(ODD[1], dtype) for dtype in dtypes)]),
        dict(component.declaration.tolerance),  # type: ignore[attr-defined]
        "cpu",
    )
    assert not found


@pytest.mark.parametrize("ignored", [0, 5, 16])
def test_the_fused_loss_is_torchtitans_chunked_one(ignored: int) -> None:
    torch.manual_seed(0)
    head = Linear.Config(in_features=16, out_features=37).build()
    torch.nn.init.normal_(head.weight)
    x, labels = torch.randn(2, 8, 16), torch.randint(37, (2, 8))
    labels.view(-1)[:ignored] = IGNORE_INDEX
    config = ChunkedLossWrapper.Config(num_chunks=2, loss_fn=CrossEntropyLoss.Config())
    found = []
    for each in (config, liger.liger_linear_cross_entropy(config)):
        module = each.build()
        module.set_lm_head(head)
        head.weight.grad = None
        leaf = x.detach().requires_grad_()
        value, _ = module(leaf, labels, torch.tensor(13.0))
        value.backward()
        found.append((value.detach(), leaf.grad, head.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert head(x).shape == (2, 8, 37)  # the output layer is itself again


def test_what_others_may_need_is_not_written_over() -> None:
    norm = liger.liger_rms_norm(RMSNorm.Config(normalized_shape=8)).build()
    torch.nn.init.ones_(norm.weight)
    x = torch.randn(2, 3, 8, requires_grad=True)
    gradient = torch.randn(2, 3, 8)
    before = gradient.clone()
    norm(x).backward(gradient)
    assert torch.equal(gradient, before)

    rope = liger.liger_rope_halves(CosSinRoPE.Config(dim=6, max_seq_len=9)).build()
    q, k = torch.randn(2, 5, 3, 6), torch.randn(2, 5, 1, 6)
    given = q.clone(), k.clone()
    rotated, _ = rope(q, k)
    assert torch.equal(q, given[0])
    assert torch.equal(k, given[1])
    again, _ = rope(q, k, torch.arange(5)[None])
    assert torch.equal(rotated, again)


@pytest.fixture
def two_ranks() -> Iterator[dist.DeviceMesh]:
    """The mesh of two ranks, of which only the first is there: nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield dist.init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


def test_a_norm_of_a_split_sequence_is_that_of_its_parts(two_ranks: dist.DeviceMesh) -> None:
    norm = liger.liger_rms_norm(RMSNorm.Config(normalized_shape=8)).build()
    whole = torch.nn.Parameter(torch.randn(8))
    norm.weight = torch.nn.Parameter(DTensor.from_local(whole.detach(), two_ranks, [Replicate()]))
    part = torch.randn(2, 3, 8)
    x = DTensor.from_local(part, two_ranks, [Shard(1)]).requires_grad_()
    y = norm(x)
    assert y.placements == (Shard(1),)
    expected = torch.nn.functional.rms_norm(part, (8,), whole, norm.eps)
    torch.testing.assert_close(y.to_local(), expected)
    y.to_local().sum().backward()
    expected.sum().backward()
    assert norm.weight.grad.placements == (Partial(),)  # each rank has a summand
    torch.testing.assert_close(norm.weight.grad.to_local(), whole.grad)


def test_heads_that_are_split_are_rotated_where_they_are(two_ranks: dist.DeviceMesh) -> None:
    rope = liger.liger_rope_halves(CosSinRoPE.Config(dim=6, max_seq_len=9)).build()
    q, k = torch.randn(2, 5, 3, 6), torch.randn(2, 5, 1, 6)
    positions = torch.arange(5).expand(2, -1) + 2
    whole = rope(q, k, positions)
    split = rope(*(DTensor.from_local(x, two_ranks, [Shard(2)]) for x in (q, k)), positions)
    for one, other in zip(split, whole, strict=True):
        assert one.placements == (Shard(2),)
        assert torch.equal(one.to_local(), other)
