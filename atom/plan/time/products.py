"""Predict the time of matrix products.

A product of m x n outputs and an inner width k is cut into tiles of a x b outputs; p
multiprocessors compute p tiles at once, so it takes ceil(tiles / p) waves of 2 a b k FLOPs each:

    t = ceil(ceil(m / a) ceil(n / b) / p) p 2 a b k / R + 3 µs,

with R the device's best measured rate over all shapes (not its data sheet's), times the clock that
power allows. The fastest of a few tiles counts. On an H100 this gives 702, 787 and 796 TFLOP/s at
2048, 4096 and 8192 (measured: 677, 789, 798), before the clock. It is at least the time to move its
operands.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from atom.plan.constants import FULL_WAVES, RAMP, TILES, Constants
from atom.plan.device import DeviceDescription
from atom.plan.execution import DELAYED, MXFP8, RECIPES, ROWWISE


def clock(device: DeviceDescription, constants: Constants) -> float:
    """Return the clock of a long run over that of the device's best measurement."""
    cap = device.power_cap / device.power if device.power else 1.0
    return float(sustained(device, constants) * cap**constants.power)


def sustained(device: DeviceDescription, constants: Constants) -> float:
    """Return the clock of a long run at the rated power over that of a short one."""
    return float(getattr(constants, f"sustained_{generation(device)}", 1.0))


def generation(device: DeviceDescription) -> str:
    """Return the generation of a GPU as constants name it; of the nearest for others."""
    major = device.capability[0] if device.capability else 0
    return {9: "h100", 10: "b200"}.get(major, "a100" if major else "")


def rate(device: DeviceDescription, precision: str, constants: Constants) -> float:
    """Return the FLOP/s of a large product in a long run."""
    dtype = "float8" if precision in RECIPES else precision
    best = device.best(dtype)
    if precision == ROWWISE:
        best *= constants.rowwise
    elif precision == DELAYED:
        best *= constants.delayed
    elif precision == MXFP8:
        best *= constants.mxfp8
    return best * clock(device, constants) / FULL_WAVES


@lru_cache(maxsize=65536)
def product(
    m: int,
    n: int,
    k: int,
    groups: int,
    precision: str,
    device: DeviceDescription,
    constants: Constants,
) -> float:
    """Return the seconds of ``groups`` products of m x k by k x n, one after another."""
    if min(m, n, k) < 1:
        return 0.0
    flops = rate(device, precision, constants)
    units = max(device.multiprocessors, 1)
    best = float("inf")
    for a, b, efficiency in TILES:
        for rows, columns in ((a, b), (b, a)):
            tiles = ceil(m / rows) * ceil(n / columns)
            split = 1 if tiles >= units else max(min(units // tiles, k // 1024), 1)
            waves = ceil(tiles * split / units)
            seconds = waves * units * 2.0 * a * b * (k / split) / (flops * efficiency)
            best = min(best, seconds)
    if device.kind == "cpu":
        best = 2.0 * m * n * k / flops
    element = 1 if precision in RECIPES else 2
    moved = (m + n) * k * element + 2 * m * n
    each = max(best, moved / (device.memory_bandwidth * constants.memory)) + RAMP
    return each * groups / (constants.grouped if groups > 1 else 1.0)
