"""What the device at hand can do: its own matrix product and its own copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from atom.bench.timing import timed

MATRIX = {"cpu": 512, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied."""

COPIED = {"cpu": 2**26, "cuda": 2**30}
"""Bytes that are copied: more than any cache holds."""


@dataclass(frozen=True)
class Ceiling:
    """``flops`` is FLOP/s by dtype, of a square matrix product; ``bandwidth`` bytes/s, those that
    a copy reads and those that it writes together."""

    flops: dict[str, float]
    bandwidth: float

    def seconds(self, flops: float, moved: float, dtype: str) -> float:
        """Return the least time that this much work takes."""
        return max(flops / self.flops[dtype], moved / self.bandwidth)

    def bound(self, flops: float, moved: float, dtype: str) -> str:
        """Return what the least time is made of, ``compute`` or ``memory``."""
        by_compute = flops / self.flops[dtype] > moved / self.bandwidth
        return "compute" if by_compute else "memory"


def measured(device: str, dtypes: Iterable[str], seconds: float) -> Ceiling:
    """Measure the ceilings of ``device``: of each the lower quartile, for what disturbs a
    measurement lowers no ceiling."""
    import torch

    size = MATRIX[device]
    flops = {}
    for dtype in dtypes:
        # Random numbers: zeros take less power, and so are multiplied faster.
        a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in "ab")
        out = torch.empty_like(a)
        taken = timed(partial(torch.mm, a, b, out=out), device, seconds)
        flops[dtype] = 2 * size**3 / taken.low
        del a, b, out
    source = torch.ones(COPIED[device] // 4, device=device)
    target = torch.empty_like(source)
    taken = timed(partial(target.copy_, source), device, seconds)
    return Ceiling(flops, 2 * COPIED[device] / taken.low)
