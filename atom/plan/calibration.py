"""Fit a device to measured steps of its own runs.

The fit minimizes the logarithms of predicted over measured times, robustly, and the distance of
each number from its measurement by a benchmark, in units of its spread, as the fit of the time
model to published runs does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import median
from typing import Any

import numpy as np

from atom.plan.device import DeviceDescription
from atom.plan.layout import Layout
from atom.plan.time.own_constants import of_device
from atom.plan.time.products import generation
from atom.plan.time.step import step
from atom.plan.work import ModelWork

NOISE = 0.05
HUBER = 1.5
STEP = 0.02
ROUNDS = 12

OF_DEVICE = {"memory_bandwidth": 0.5, "node_bandwidth": 0.7, "latency": 1.0}
"""Number of a device -> standard deviation of its logarithm after the benchmark."""

OF_MODEL = {"launch": 1.0, "step": 1.0, "loss": 0.7, "eager": 0.5, "straggler": 0.5}
"""The same for constants of the time model."""

PRODUCTS, ATTENTION = 0.4, 0.7


@dataclass(frozen=True)
class Observation:
    """A run of the device: its work, its layout, the seconds of a step."""

    name: str
    work: ModelWork
    layout: Layout
    seconds: float


@dataclass(frozen=True)
class Calibrated:
    """A fitted device, and the relative errors of its predictions before and after the fit."""

    device: DeviceDescription
    before: list[float]
    after: list[float]


def fitted(device: DeviceDescription, runs: Sequence[Observation]) -> Calibrated:
    """Fit ``device``, whose numbers a benchmark has measured, to ``runs``."""
    spreads = _spreads(device, runs)
    names = list(spreads)
    start = np.array([log(_value(device, name)) for name in names])
    scale = np.array([spreads[name] for name in names])

    def residuals(at: np.ndarray) -> np.ndarray:
        found = _changed(device, dict(zip(names, np.exp(at), strict=True)))
        errors = [log(step(r.work, r.layout, found).seconds / r.seconds) for r in runs]
        return np.array(errors) / NOISE

    at = start.copy()
    for _ in range(ROUNDS):
        base = residuals(at)
        columns = [(residuals(at + STEP * row) - base) / STEP for row in np.eye(len(names))]
        slopes = np.array(columns).T
        weight = np.sqrt(np.minimum(1.0, HUBER / np.maximum(np.abs(base), 1e-9)))
        left = np.vstack([slopes * weight[:, None], np.diag(1 / scale)])
        right = np.concatenate([-base * weight, (start - at) / scale])
        move = np.linalg.lstsq(left, right, rcond=None)[0]
        at = at + np.clip(move, -0.7, 0.7)
        if np.abs(move).max() < 1e-4:
            break
    values = {name: float(f"{exp(x):.4g}") for name, x in zip(names, at, strict=True)}
    found = _changed(device, values)
    return Calibrated(found, errors(device, runs), errors(found, runs))


def errors(device: DeviceDescription, runs: Sequence[Observation]) -> list[float]:
    """Return the relative errors of the predicted steps."""
    return [step(r.work, r.layout, device).seconds / r.seconds - 1 for r in runs]


def typical(errors: Sequence[float]) -> float:
    """Return the median absolute error."""
    return median(map(abs, errors))


def _spreads(device: DeviceDescription, runs: Sequence[Observation]) -> dict[str, float]:
    found = {f"device.{name}": spread for name, spread in OF_DEVICE.items()}
    found |= {f"constants.{name}": spread for name, spread in OF_MODEL.items()}
    for run in runs:
        how = run.layout.execution
        found[f"products.{how.unquantized}"] = PRODUCTS
        found[f"constants.{how.attention}_{generation(device) or 'a100'}"] = ATTENTION
    # What no run has cannot be fitted.
    if all(run.layout.ranks == 1 for run in runs):
        for name in ("node_bandwidth", "latency"):
            found.pop(f"device.{name}")
    return found


def _value(device: DeviceDescription, name: str) -> float:
    kind, _, key = name.partition(".")
    if kind == "products":
        return device.best(key)
    if kind == "constants":
        return float(getattr(of_device(device), key))
    return float(getattr(device, key)) or 1e-5


def _changed(device: DeviceDescription, values: dict[str, float]) -> DeviceDescription:
    own: dict[str, Any] = {}
    products, constants = dict(device.products or {}), dict(device.constants or {})
    for name, value in values.items():
        kind, _, key = name.partition(".")
        if kind == "products":
            products[key] = value
        elif kind == "constants":
            constants[key] = value
        else:
            own[key] = value
    return replace(device, products=products, constants=constants, **own)
