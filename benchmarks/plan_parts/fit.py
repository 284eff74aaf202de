"""Fit the constants of the time model to all published rows together.

The fit minimizes the errors' logarithms in units of ``NOISE``, robustly (Huber), and the distance
of each constant's logarithm from its prior in units of the prior's spread. A source's rows count as
the square root of their number, so that a table of 200 rows does not decide alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import exp, log

import numpy as np
from plan_parts.jobs import Job

from atom.plan.constants import PRIORS, Constants
from atom.plan.time.step import step

NOISE = 0.05
"""Standard deviation of the logarithm of a repetition: identical jobs differ by 2 to 13 %."""

HUBER = 1.5
STEP = 0.02
Vector = np.ndarray


def predicted(jobs: Sequence[Job], constants: Constants) -> list[float]:
    """Return the seconds of a step of each job."""
    return [step(job.work, job.layout, job.device, constants).seconds for job in jobs]


def residuals(jobs: Sequence[Job], constants: Constants) -> Vector:
    """Return the logarithms of predicted over measured times."""
    times = predicted(jobs, constants)
    return np.array([log(p / job.seconds) for p, job in zip(times, jobs, strict=True)])


def jacobian(jobs: Sequence[Job], constants: Constants, base: Vector) -> Vector:
    """Return the derivatives of the residuals by the constants' logarithms."""
    columns = []
    for name in PRIORS:
        value = getattr(constants, name) * exp(STEP)
        columns.append((residuals(jobs, replace(constants, **{name: value})) - base) / STEP)
    return np.array(columns).T


def solved(
    jobs: Sequence[Job],
    base: Vector,
    slopes: Vector,
    start: Constants,
    prior: Constants,
    without: str = "",
) -> Constants:
    """Return the best constants by the linearization at ``start``, without a source."""
    kept = np.array([job.fitted and job.source != without for job in jobs])
    counts = Counter(job.source for job in jobs)
    share = np.array([counts[job.source] ** -0.5 for job in jobs]) * kept
    scale = np.array(list(PRIORS.values()))
    offset = np.array([log(getattr(start, n) / getattr(prior, n)) for n in PRIORS]) / scale
    moved = np.zeros(len(scale))
    for _ in range(30):
        left = (base + slopes @ moved) / NOISE
        weight = share * np.minimum(1.0, HUBER / np.maximum(np.abs(left), 1e-9))
        a = np.vstack([slopes / NOISE * np.sqrt(weight)[:, None], np.diag(1 / scale)])
        b = np.concatenate([-base / NOISE * np.sqrt(weight), -offset])
        moved = np.linalg.lstsq(a, b, rcond=None)[0]
    moved = np.clip(moved, -0.5, 0.5)
    values = {n: getattr(start, n) * exp(m) for n, m in zip(PRIORS, moved, strict=True)}
    return replace(start, **values)


def fitted(jobs: Sequence[Job], prior: Constants, start: Constants, rounds: int = 3) -> Constants:
    """Return the constants that fit all jobs."""
    for _ in range(rounds):
        base = residuals(jobs, start)
        start = solved(jobs, base, jacobian(jobs, start, base), start, prior)
    return start
