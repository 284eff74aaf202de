"""The call of cut cross-entropy, with the package's own PyTorch version: the kernel needs a GPU."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torchtitan.components.loss import IGNORE_INDEX, ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.models.common import Linear

pytestmark = pytest.mark.skipif(
    find_spec("cut_cross_entropy") is None, reason="cut-cross-entropy is not installed"
)


def test_the_loss_is_torchtitans_chunked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from atom_kernels_adapters import cut_cross_entropy as adapter
    from atom_kernels_adapters import cut_functions

    monkeypatch.setattr(cut_functions, "cut", partial(cut_functions.cut, impl="torch_compile"))
    torch.manual_seed(0)
    head = Linear.Config(in_features=16, out_features=37).build()
    torch.nn.init.normal_(head.weight)
    x, labels = torch.randn(2, 8, 16), torch.randint(37, (2, 8))
    labels[0, :3] = IGNORE_INDEX
    config = ChunkedLossWrapper.Config(num_chunks=2, loss_fn=CrossEntropyLoss.Config())
    found = []
    with torch.compiler.set_stance("force_eager"):
        for each in (config, adapter.cut_linear_cross_entropy(config)):
            module = each.build()
            module.set_lm_head(head)
            head.weight.grad = None
            leaf = x.detach().requires_grad_()
            value, _ = module(leaf, labels, torch.tensor(13.0))
            value.backward()
            found.append((value.detach(), leaf.grad, head.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
