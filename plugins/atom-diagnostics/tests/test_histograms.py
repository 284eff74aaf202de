"""Bins are those of plain arithmetic, and shares are of a layer's finite values."""

from __future__ import annotations

import bisect
import math

import pytest
import torch

from atom_diagnostics import histograms
from atom_diagnostics.histograms import EDGES, counted, in_bins


def by_hand(values: list[float]) -> list[int]:
    """Return the numbers of the bins; values below zero are in the bin of their size."""
    found = [0] * (len(EDGES) - 1)
    for value in values:
        size = min(max(abs(value), 0.0), EDGES[-1] * 0.99)
        number = bisect.bisect_right(EDGES, size) - 1
        found[number if value >= 0 else len(found) - 1 - number] += 1
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_counted_in_their_bins(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histograms, "_CHUNK", {"cpu": 100})
    random = torch.Generator().manual_seed(1)
    scales = 10.0 ** torch.randint(-14, 5, (1000,), generator=random)
    values = (torch.randn(1000, generator=random) * scales).to(dtype)
    ends = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-40, -(2.0**-41), 2.0**9, 2.0**10, -1e30])
    values = torch.cat([values, ends.to(dtype)])
    *counts, lost = in_bins(counted(values.reshape(-1, 2)).tolist())
    assert counts == by_hand(values.tolist())
    assert lost == 0
    found = in_bins(counted(torch.tensor([math.nan, math.inf, -math.inf, 3.0])).tolist())
    assert (found[-1], sum(found)) == (3, 4)


def test_edges_ascend_around_zero() -> None:
    assert sorted(set(EDGES)) == EDGES
    assert [-edge for edge in reversed(EDGES)] == EDGES
    assert len(EDGES) - 1 == 101
