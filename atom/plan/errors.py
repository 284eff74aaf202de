"""State how far estimates are from measurements, by class of runs.

``benchmarks/plan_accuracy.py --held-out`` prints these: each published source is predicted with
constants that are fitted to all others, and the 5 % and 95 % quantiles of measured over predicted
times are the range of a class.
"""

from __future__ import annotations

from atom.plan.device import DeviceDescription
from atom.plan.execution import RECIPES
from atom.plan.layout import Layout

MEMORY = 0.121
"""Largest relative error of the memory of 21 published runs of H100s."""

DENSE, EIGHT_BITS, EXPERTS, OTHERS = "hopper_bf16", "hopper_8bit", "experts", "other_devices"

RANGES = {
    DENSE: (0.87, 1.08),
    EIGHT_BITS: (0.83, 1.17),
    EXPERTS: (0.87, 1.63),
    OTHERS: (0.83, 1.14),
}
"""Class -> 5 % and 95 % quantiles of measured over predicted seconds, held out: of 120,
67, 41 and 181 published rows. Rows of GPUs with an unknown power cap are not among them."""

UNKNOWN = (0.1, 10.0)
"""The same where nothing was published: on a CPU the estimate is an order of magnitude."""

CPU, CALIBRATED = "cpu", "calibrated"


def class_of(layout: Layout, device: DeviceDescription) -> str:
    """Return the class of a run."""
    if device.error:
        return CALIBRATED
    if device.kind == "cpu":
        return CPU
    if layout.ep > 1:
        return EXPERTS
    hopper = device.capability is not None and device.capability[0] == 9
    if not hopper:
        return OTHERS
    return EIGHT_BITS if layout.execution.products in RECIPES else DENSE


def spread(layout: Layout, device: DeviceDescription) -> tuple[float, float]:
    """Return the factors on a step's seconds between which 90 % of measurements are.

    Of a calibrated device: as far as its own runs, all of which the fit has seen.
    """
    if device.error:
        return 1 / (1 + device.error), 1 + device.error
    return RANGES.get(class_of(layout, device), UNKNOWN)
