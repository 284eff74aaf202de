"""Runs of a planted scaling law."""

from __future__ import annotations

import math

import numpy as np

from atom.plan import scaling
from atom.plan.law_fit import Point
from atom.plan.scaling import LossLaw

PLANTED = scaling.named("besiroglu")
assert isinstance(PLANTED, LossLaw)


def runs(noise: float, seed: int = 0, law: LossLaw = PLANTED) -> list[Point]:
    """A ladder of 6 sizes on 1, 2, 5 and 10 times their best tokens."""
    random = np.random.default_rng(seed)
    return [
        Point(f"{size:.0e}-{multiple}", size, tokens, float(law.loss(size, tokens) * off))
        for size in (2e7, 5e7, 1e8, 2e8, 4e8, 8e8)
        for multiple in (1, 2, 5, 10)
        for tokens in [law.tokens_for(size) * multiple]
        for off in [math.exp(noise * random.standard_normal())]
    ]
