"""The largest logit is that of all logits at once, under every mask; a sharp head is named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.attention.flex_attention import and_masks, create_block_mask
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from torchtitan.models.common import attention as nodes
from torchtitan.models.common import token_dispatcher

from atom_diagnostics import logits
from atom_diagnostics.attention import LargestLogits
from atom_diagnostics.config import Attention, LogitAlert

BATCH, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 32, 4, 2, 8
POSITIONS = torch.cat([torch.arange(20), torch.arange(12)])
ENDS = torch.tensor([0, 20, 32, 52, 64], dtype=torch.int32)


def queries_and_keys() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    q_BLNH = torch.randn(BATCH, LENGTH, HEADS, WIDTH, generator=random)
    return q_BLNH, torch.randn(BATCH, LENGTH, KV_HEADS, WIDTH, generator=random)


def expected(window: int, scale: float, *, documents: bool = True) -> float:
    """Return the largest logit, one by one."""
    q_BLNH, k_BSMH = queries_and_keys()
    document = torch.cumsum(POSITIONS == 0, 0) if documents else torch.zeros(LENGTH)
    return max(
        scale * (q_BLNH[b, q, n] @ k_BSMH[b, k, n // 2]).item()
        for b in range(BATCH)
        for n in range(HEADS)
        for q in range(LENGTH)
        for k in range(max(q - window + 1, 0), q + 1)
        if document[q] == document[k]
    )


def block_mask(window: int) -> Any:
    masks = [nodes.get_causal_mask_mod(), nodes.get_sliding_window_mask_mod(window)]
    masks.append(nodes.get_document_mask_mod(POSITIONS.repeat(BATCH, 1)))
    shape = (BATCH, None, LENGTH, LENGTH)
    return create_block_mask(and_masks(*masks), *shape, device="cpu", BLOCK_SIZE=16)


def varlen(window: int) -> nn.Module:
    node = nodes.VarlenAttention.__new__(nodes.VarlenAttention)
    nn.Module.__init__(node)
    node.window_size = (window - 1, 0)
    return node


@pytest.mark.parametrize("block", [1, 2**24], ids=["blocks", "whole"])
@pytest.mark.parametrize("window", [5, LENGTH])
@pytest.mark.parametrize("kernel", ["flex", "varlen", "sdpa"])
def test_the_largest_logit_is_that_of_plain_arithmetic(
    kernel: str, window: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "_ELEMENTS", {"cpu": block})
    monkeypatch.setattr(logits, "_KEPT", 20 * LENGTH * BATCH if block == 1 else 2**26)
    q_BLNH, k_BSMH = queries_and_keys()
    if kernel == "flex":
        node = nodes.FlexAttention.Config().build()
        keywords = {"attention_masks": block_mask(window)}
    elif kernel == "varlen":
        metadata = nodes.VarlenMetadata(ENDS, ENDS, 20, 20)
        node, keywords = varlen(window), {"attention_masks": metadata}
    else:
        node, keywords = nodes.ScaledDotProductAttention.Config().build(), {"is_causal": True}
        window = LENGTH
    hidden = logits.Masks().hidden(node, keywords, q_BLNH, k_BSMH)
    found = logits.largest(q_BLNH, k_BSMH, hidden, 0.3).item()
    documents = kernel != "sdpa"
    assert found == pytest.approx(expected(window, 0.3, documents=documents), rel=1e-6)


def test_without_a_mask_and_a_scale_all_keys_are_seen() -> None:
    q_BLNH, k_BSMH = queries_and_keys()
    node = nodes.ScaledDotProductAttention.Config().build()
    hidden = logits.Masks().hidden(node, {"is_causal": False}, q_BLNH, k_BSMH)
    found = logits.largest(q_BLNH.bfloat16(), k_BSMH.bfloat16(), hidden, None)
    every = torch.einsum("blmgh,bsmh->blmgs", q_BLNH.unflatten(2, (2, 2)), k_BSMH) / WIDTH**0.5
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(every.max().item(), rel=0.02)


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(HEADS * WIDTH, HEADS * WIDTH, bias=False)
        self.inner_attention = nodes.ScaledDotProductAttention.Config().build()

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        q_BLNH, x_BLNH = (x.unflatten(-1, (HEADS, WIDTH)) for x in (self.wq(x_BLD), x_BLD))
        return self.inner_attention(q_BLNH, x_BLNH, x_BLNH).flatten(2)


class Run:
    """A run of three layers, which does the steps of a callback."""

    def __init__(self, **changed: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"layers": nn.ModuleDict({str(n): Layer() for n in range(3)})})
        self.model_parts, self.device, self.probing = [self.model], torch.device("cpu"), False
        self.parallel_dims = SimpleNamespace(cp_enabled=False)
        self.step, self.alerts = 0, []
        self.callback = LargestLogits(Attention(**{"interval": 2} | changed), last_step=9)
        self.callback.on_start(self)

    def log(self, values: dict[str, float]) -> None:
        self.row = dict(values)

    def alert(self, reason: str) -> None:
        self.alerts.append(reason)

    def stop(self, reason: str) -> None:
        raise RuntimeError(reason)

    def do(self) -> dict[str, float]:
        self.step, self.row = self.step + 1, {}
        self.callback.before_step(self)
        x_BLD = torch.randn(2, 6, HEADS * WIDTH, generator=torch.Generator().manual_seed(1))
        for _ in range(2):
            self.callback.before_forward(self, {})
            for layer in self.model["layers"].values():
                x_BLD = layer(x_BLD)
            self.callback.after_forward(self, x_BLD)
        self.callback.after_backward(self)
        return self.row


@pytest.mark.usefixtures("alone")
def test_a_layer_with_sharp_attention_is_named_once() -> None:
    run = Run(alert=LogitAlert(above=50))
    assert run.do() == {}, "step 1 is not measured"
    before = run.do()
    assert list(before) == ["logit/layers.0", "logit/layers.1", "logit/layers.2"]
    assert run.alerts == []
    assert not run.model["layers"]["1"].inner_attention._forward_hooks
    with torch.no_grad():
        run.model["layers"]["1"].wq.weight.mul_(1e3)
    run.do()
    after = run.do()
    assert after["logit/layers.0"] == before["logit/layers.0"]
    assert after["logit/layers.1"] == pytest.approx(1e3 * before["logit/layers.1"], rel=1e-5)
    assert run.alerts == [f"attention logit above 50: layers.1 ({after['logit/layers.1']:.3g})"]
    run.do()
    run.do()
    assert len(run.alerts) == 1


@pytest.mark.usefixtures("alone")
def test_what_is_not_a_number_is_no_maximum() -> None:
    run = Run(interval=1, alert=LogitAlert(stop=True))
    run.model["layers"]["2"].wq.weight.data[0, 0] = math.nan
    with pytest.raises(RuntimeError, match=r"attention logit above 100: layers\.2 \(nan\)"):
        run.do()
    assert math.isnan(run.row["logit/layers.2"])
    assert math.isfinite(run.row["logit/layers.1"])


@pytest.mark.usefixtures("alone")
def test_selective_checkpointing_keeps_none_of_the_hooks_products() -> None:
    """It would take them for those of the layer when it computes the layer again."""
    run = Run(interval=1)
    layer = run.model["layers"]["0"]
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.bmm.default])

    def squares(x_BLD: torch.Tensor) -> torch.Tensor:
        y_BLD = layer(x_BLD)
        # The backward pass of sin needs the products.
        return torch.bmm(y_BLD, y_BLD.transpose(1, 2)).sin()

    gradients = []
    for measured in (False, True):
        run.model.zero_grad()
        run.callback._due = False
        if measured:
            run.callback.before_step(run)
        run.callback.before_forward(run, {})
        x_BLD = torch.randn(2, 6, HEADS * WIDTH, generator=torch.Generator().manual_seed(1))
        found = checkpoint(squares, x_BLD, use_reentrant=False, context_fn=contexts)
        found.sum().backward()
        run.callback.after_forward(run, found)
        gradients.append(layer.wq.weight.grad.clone())
    assert torch.equal(*gradients)
    assert run.callback._found[0, 0] > 0


def test_only_one_dispatcher_of_torchtitan_can_drop_tokens() -> None:
    """And its kernel uses it without a capacity: see test_deepep.py of atom-kernels-adapters."""
    with_capacity = {
        name
        for name, found in vars(token_dispatcher).items()
        if dataclasses.is_dataclass(getattr(found, "Config", None))
        and any("capacity" in field.name for field in dataclasses.fields(found.Config))
    }
    assert with_capacity == {"HybridEPTokenDispatcher"}
