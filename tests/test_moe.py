"""The experts of a layer on a CPU: in the precision of the run, and shared out over gloo."""

from __future__ import annotations

from typing import Any

import pytest
import ranks
import torch
import torch.nn.functional as F
from torchtitan.models.common.moe import GroupedExperts

RANKS = 3


@pytest.mark.parametrize("counts", [(3, 0, 5, 4), (0, 0, 0, 12), (12, 0, 0, 0)])
def test_experts_compute_in_the_dtype_of_the_tokens(counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    experts = GroupedExperts.Config(dim=16, hidden_dim=24, num_experts=4).build()
    with torch.no_grad():
        for weight in experts.parameters():
            weight.normal_(std=0.3)
    x_RD = torch.randn(12, 16, requires_grad=True)
    out_RD = experts(x_RD, torch.tensor(counts))
    assert out_RD.dtype == torch.float32

    expected = []
    for expert, x in enumerate(x_RD.split(list(counts))):
        w1, w2, w3 = (w[expert] for w in (experts.w1_EFD, experts.w2_EDF, experts.w3_EFD))
        expected.append((F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T)
    reference_RD = torch.cat(expected)
    # bfloat16 is off by 1e-2.
    torch.testing.assert_close(out_RD, reference_RD, rtol=1e-5, atol=1e-6)

    weight_RD = torch.randn_like(out_RD)
    inputs = (x_RD, *experts.parameters())
    ours = torch.autograd.grad((out_RD * weight_RD).sum(), inputs)
    theirs = torch.autograd.grad((reference_RD * weight_RD).sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_uneven_lists_are_exchanged_over_gloo() -> None:
    """What rank r sends to rank s arrives there, whatever its size, and its gradient comes back."""
    ranks.run(__file__, "exchange", RANKS)


def exchange(rank: int) -> None:
    import spmd_types as spmd

    from atom.titan.compat import moe

    moe.exchange_over_gloo()
    distributed: Any = torch.distributed

    def rows(source: int, target: int) -> int:
        return (2 * source + target) % 4  # some of them none

    sent = [rows(rank, target) for target in range(RANKS)]
    received = [rows(source, rank) for source in range(RANKS)]
    blocks = [torch.full((n, 5), 10.0 * rank + target) for target, n in enumerate(sent)]
    x = torch.cat(blocks).requires_grad_()
    out = spmd.all_to_all(
        x,
        distributed.group.WORLD,
        src=spmd.V,
        dst=spmd.V,
        output_split_sizes=received,
        input_split_sizes=sent,
    )
    expected = [torch.full((n, 5), 10.0 * source + rank) for source, n in enumerate(received)]
    torch.testing.assert_close(out, torch.cat(expected))
    (out * (1 + rank)).sum().backward()
    factors = [torch.full((n, 5), 1.0 + target) for target, n in enumerate(sent)]
    torch.testing.assert_close(x.grad, torch.cat(factors))
