"""Measure the device's ceilings: FLOP/s of a matrix product, bandwidth of a copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from atom.bench.timing import timed

MATRIX = {"cpu": 512, "cuda": 8192}
"""Rows and columns of the matrices to multiply."""

COPIED = {"cpu": 2**26, "cuda": 2**30}
"""Bytes to copy: more than any cache holds."""


@dataclass(frozen=True)
class Ceiling:
    """The ceilings of a device.

    ``flops`` maps a dtype to the FLOP/s of a square matrix product; ``bandwidth`` is the bytes/s of
    a copy, reads and writes added.
    """

    flops: dict[str, float]
    bandwidth: float

    def seconds(self, flops: float, moved: float, dtype: str) -> float:
        """Return the shortest possible time for ``flops`` and ``moved`` bytes."""
        return max(flops / self.flops[dtype], moved / self.bandwidth)

    def bound(self, flops: float, moved: float, dtype: str) -> str:
        """Return which ceiling sets the shortest time, ``compute`` or ``memory``."""
        by_compute = flops / self.flops[dtype] > moved / self.bandwidth
        return "compute" if by_compute else "memory"


def measured(device: str, dtypes: Iterable[str], seconds: float) -> Ceiling:
    """Measure the ceilings of ``device``.

    Each takes the lower quartile of the times: a disturbance must not lower a ceiling.
    """
    import torch

    size = MATRIX[device]
    flops = {}
    for dtype in dtypes:
        # Random numbers: zeros take less power, and so multiply faster.
        a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in "ab")
        out = torch.empty_like(a)
        taken = timed(partial(torch.mm, a, b, out=out), device, seconds)
        flops[dtype] = 2 * size**3 / taken.low
        del a, b, out
    source = torch.ones(COPIED[device] // 4, device=device)
    target = torch.empty_like(source)
    taken = timed(partial(target.copy_, source), device, seconds)
    return Ceiling(flops, 2 * COPIED[device] / taken.low)
