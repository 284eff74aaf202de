"""How QuACK is called: its operators take what the adapters give them, and return what they expect.

The kernels need a GPU. Fake tensors, which have shapes and dtypes and no values, go through the
package's own operators on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.models.common import Linear, RMSNorm

pytestmark = pytest.mark.skipif(find_spec("quack") is None, reason="QuACK is not installed")

BATCH, LENGTH, DIM, VOCABULARY = 2, 24, 512, 4096


H100 = SimpleNamespace(major=9, minor=0, multi_processor_count=132)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No values; QuACK calls its operators as it does under torch.compile, for an H100."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: H100)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    torch.set_default_dtype(before)


def hidden() -> torch.Tensor:
    return torch.empty(BATCH, LENGTH, DIM, requires_grad=True)


def test_rms_norm_keeps_shape_and_dtype() -> None:
    from atom_kernels_adapters.quack import quack_rms_norm

    norm = quack_rms_norm(RMSNorm.Config(normalized_shape=DIM)).build()
    x = hidden()
    y = norm(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert norm.weight.grad.shape == (DIM,)


def test_cross_entropy_is_a_number() -> None:
    from atom_kernels_adapters.quack import quack_cross_entropy

    loss = quack_cross_entropy(CrossEntropyLoss.Config()).build()
    logits = torch.empty(BATCH, LENGTH, VOCABULARY)
    labels = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    value, _ = loss(logits.requires_grad_(), labels, torch.tensor(48.0))
    assert value.shape == ()
    value.backward()
    assert logits.grad.shape == logits.shape


def test_linear_cross_entropy_reaches_the_output_layer() -> None:
    from atom_kernels_adapters.quack import quack_linear_cross_entropy

    node = ChunkedLossWrapper.Config(num_chunks=2, loss_fn=CrossEntropyLoss.Config())
    loss = quack_linear_cross_entropy(node).build()
    head = Linear.Config(in_features=DIM, out_features=VOCABULARY).build()
    loss.set_lm_head(head)
    x = hidden()
    labels = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    value, _ = loss(x, labels, torch.tensor(48.0))
    assert value.shape == ()
    value.backward()
    assert x.grad.shape == x.shape
    assert head.weight.grad.shape == (VOCABULARY, DIM)
