"""torchtitan's learning rates, which end with their schedule.

torchtitan goes on computing the formula of the decay after its end, where it is negative (linear,
sqrt), or climbs back to the peak (cosine).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchtitan.components.optimizer import LRSchedulersContainer


class EndingLRSchedulers(LRSchedulersContainer):
    """After the last scheduled step the rate stays what the decay has led to."""

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        def build(self, *, optimizers: Any, training_steps: int) -> LRSchedulersContainer:
            built: LRSchedulersContainer = LRSchedulersContainer.Config.build(
                self, optimizers=optimizers, training_steps=training_steps
            )
            last = self.total_steps if self.total_steps is not None else training_steps
            for scheduler in built.schedulers:
                scheduler.lr_lambdas = [
                    partial(_until, last, factor) for factor in scheduler.lr_lambdas
                ]
            return built


def _until(last: int, factor: Callable[[int], float], step: int) -> float:
    """Return the factor of a step, counted from 0, of which ``last`` is the first unscheduled."""
    return factor(min(step, last))
