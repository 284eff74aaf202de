"""``loss.z_loss`` is the penalty of plain torch, in every layout, and not in the loss."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from atom.run_dir.metrics import StepMetrics
from atom.testing import partners, runs
from atom.titan.train import z_loss

WEIGHT, IGNORED = 0.1, -100
LLAMA = {"name": f"{partners.PACKAGE}:llama"}


def plain(
    head: torch.nn.Linear, hidden_BLD: torch.Tensor, labels_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of cross-entropies, and the sum of penalties."""
    logits_RV = head(hidden_BLD).flatten(0, 1)
    labels_R = labels_BL.flatten()
    loss = F.cross_entropy(logits_RV, labels_R, reduction="sum", ignore_index=IGNORED)
    squares_R = torch.logsumexp(logits_RV, dim=-1) ** 2
    return loss, WEIGHT * squares_R[labels_R != IGNORED].sum()


@pytest.mark.parametrize("chunks", [0, 1, 4])
def test_gradients_are_those_of_plain_torch(chunks: int) -> None:
    """The value of the loss has the bits of one without the penalty."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 30, bias=False)
    hidden_BLD = (3 * torch.randn(2, 16, 8)).requires_grad_()
    labels_BL = torch.randint(30, (2, 16))
    labels_BL[0, 5:9] = IGNORED
    tokens = (labels_BL != IGNORED).sum()
    cross_entropy, penalty = plain(head, hidden_BLD, labels_BL)
    ((cross_entropy + penalty) / tokens).backward()
    wanted = [hidden_BLD.grad, head.weight.grad]
    hidden_BLD.grad = head.weight.grad = None

    inner = z_loss.CrossEntropyWithZLoss.Config(global_vocab_size=30, z_loss=WEIGHT)
    loss: Any = inner.build()
    if chunks:
        loss = z_loss.ChunkedLossWithZLoss.Config(num_chunks=chunks, loss_fn=inner).build()
        loss.set_lm_head(head)
    with torch.no_grad():  # as in a validation
        pred = hidden_BLD.detach()
        value = loss(pred if chunks else head(pred), labels_BL, tokens)[0]
        assert value.item() == pytest.approx((cross_entropy / tokens).item(), rel=1e-6)
        assert z_loss.of(loss, 1) == 0
    pred = hidden_BLD
    for _ in range(2):  # the second pass counts alone
        value = loss(pred if chunks else head(pred), labels_BL, tokens)[0]
        value.backward()
        assert z_loss.of(loss, 1).item() == pytest.approx((penalty / tokens).item(), rel=1e-6)
    assert value.item() == pytest.approx((cross_entropy / tokens).item(), rel=1e-6)
    for found, expected in zip([hidden_BLD.grad, head.weight.grad], wanted, strict=True):
        assert torch.allclose(found, 2 * expected, rtol=1e-4, atol=1e-6)


def trained(layout: dict[str, Any], **loss: Any) -> list[StepMetrics]:
    sections = runs.sections(LLAMA, layout, loss={"z_loss": WEIGHT} | loss)
    if "tensor_parallel_degree" in layout:  # two passes a step
        sections["training"]["local_batch_size"] = 2
    return runs.train(sections)


LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "chunks under tensor parallelism": (runs.LAYOUTS["tp"], {"num_chunks": 4}),
    "DTensors": (runs.LAYOUTS["tp"] | {"spmd_backend": "full_dtensor"}, {}),
    "DTensors of tensor parallelism": (
        runs.LAYOUTS["tp"] | {"spmd_backend": "partial_dtensor"},
        {},
    ),
    "a pipeline and context parallelism": (
        runs.LAYOUTS["pp"] | runs.LAYOUTS["cp"],
        {"num_chunks": 2},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_train_alike(layout: str) -> None:
    degrees, loss = LAYOUTS[layout]
    rows, reference = trained(degrees, **loss), trained(runs.SINGLE)
    runs.assert_same(rows, reference, tolerance=1e-5)
    for row, on_one in zip(rows, reference, strict=True):
        assert row.z_loss is not None
        assert row.z_loss == pytest.approx(on_one.z_loss, rel=1e-5)


@pytest.mark.slow
def test_the_loss_is_reported_without_the_penalty() -> None:
    with_it, without = trained(runs.SINGLE), runs.on_one_rank(LLAMA)
    assert with_it[0].loss == without[0].loss
    assert with_it[0].grad_norm != pytest.approx(without[0].grad_norm, rel=1e-3)
    # The logits of a new model have a variance of about 1.
    squares = (math.log(partners.VOCAB_SIZE) + 0.5) ** 2
    assert with_it[0].z_loss == pytest.approx(WEIGHT * squares, rel=0.1)
    assert without[0].z_loss is None


EXPLAINED = ("kernels", "explain", "architecture=llama3_8b", "device=h100", "loss.z_loss=1e-4")
REFUSED = {"kernels.cross_entropy=liger": "liger", "kernels.linear_cross_entropy=triton": "triton"}


@pytest.mark.slow
@pytest.mark.parametrize("override", REFUSED)
def test_a_kernel_without_it_is_refused(
    atom: Callable[..., subprocess.CompletedProcess[str]], override: str
) -> None:
    done = atom(*EXPLAINED, override)
    assert done.returncode == 2, done.stdout
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"atom: {override} (command line): "), sentence
    assert "computes no z-loss (loss.z_loss)" in sentence
