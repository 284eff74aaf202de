"""Read a budget: FLOPs, dollars or GPU-days."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from atom.errors import UserError
from atom.plan.device import DeviceDescription

MFU = 0.40
"""Model FLOPS utilization: Llama 3 405B on 8,192 and 16,384 H100s 0.43 and 0.41
(https://arxiv.org/abs/2407.21783, table 4)."""

GOODPUT = 0.90
"""Share of time that counts: Llama 3 and MegaScale above 0.90 (https://arxiv.org/abs/2407.21783,
https://arxiv.org/abs/2402.15627)."""

PRICE = 3.0
"""Dollars of a GPU-hour: an H100 on demand (nanochat's README, 2026-03); DeepSeek-V3's report
counts 2.0 for an H800."""

_AMOUNT = re.compile(r"(\$?)\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z$_-]*)", re.IGNORECASE)
_UNITS = {
    "": "flops",
    "flops": "flops",
    "flop": "flops",
    "usd": "dollars",
    "$": "dollars",
    "dollars": "dollars",
    "gpu_days": "gpu_days",
    "gpu-days": "gpu_days",
}


LIMITS = (1e15, 1e30)
"""The least and the greatest FLOPs of a budget: seconds of a GPU, and 10,000 times the largest run
of 2025."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget in all its units.

    Attributes:
        unit: ``flops``, ``dollars`` or ``gpu_days``: how it was given.
        flops: FLOPs of the model.
        gpu_days: days of one device, wasted time included.
        dollars: their price.
    """

    unit: str
    flops: float
    gpu_days: float
    dollars: float


def read(
    text: str,
    device: DeviceDescription,
    *,
    price_gpu_hour: float = PRICE,
    mfu: float = MFU,
    goodput: float = GOODPUT,
    dtype: str = "bfloat16",
) -> Budget:
    """Return the budget in ``text``: ``1e23``, ``2e6usd`` or ``5000gpu_days``.

    Raises:
        UserError: it is no budget.
    """
    match = _AMOUNT.fullmatch(text.strip())
    unit = None
    if match:
        unit = _UNITS.get("$" if match[1] and not match[3] else match[3].lower())
    if match is None or unit is None or (match[1] and unit != "dollars"):
        raise _invalid(text)
    try:
        amount = float(match[2])
    except ValueError:
        raise _invalid(text) from None
    if not (math.isfinite(amount) and amount > 0):
        raise _invalid(text)
    day = 86400 * device.peak(dtype) * mfu * goodput  # FLOPs of a GPU-day
    if unit == "flops":
        days = amount / day
    elif unit == "gpu_days":
        days = amount
    else:
        if not price_gpu_hour:
            raise UserError(
                "buys any number of GPU-days",
                key="plan.price_gpu_hour",
                value=f"{price_gpu_hour:g}",
                valid="above 0 with a budget in dollars",
            )
        days = amount / price_gpu_hour / 24
    flops = amount if unit == "flops" else days * day
    low, high = LIMITS
    if not low <= flops <= high:
        raise UserError(
            f"is {flops:.3g} FLOPs, far beyond all runs that laws are fitted to",
            key="budget",
            value=text,
            origin="command line",
            valid=f"{low:g} to {high:g} FLOPs",
        )
    return Budget(unit, flops, days, days * 24 * price_gpu_hour)


def _invalid(text: str) -> UserError:
    return UserError(
        "is no budget",
        key="budget",
        value=text,
        valid="FLOPs (1e23), dollars (2e6usd) or GPU-days (5000gpu_days), above 0",
    )
