"""A learning-rate scheduler that ends with its schedule.

After its last step torchtitan continues to evaluate the decay's formula, which becomes negative
(linear, sqrt) or rises to the peak again (cosine).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchtitan.components.optimizer import LRSchedulersContainer

from atom.recipe.schedules import Phase, rate


class EndingLRSchedulers(LRSchedulersContainer):
    """A scheduler that keeps the final learning rate after the last scheduled step."""

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        phases: tuple[Any, ...] = ()
        """The phases of ``lr_scheduler.stages``; empty for torchtitan's schedule."""

        def build(self, *, optimizers: Any, training_steps: int) -> LRSchedulersContainer:
            if self.phases:
                return LRSchedulersContainer(optimizers, partial(_rate, self.phases))
            built: LRSchedulersContainer = LRSchedulersContainer.Config.build(
                self, optimizers=optimizers, training_steps=training_steps
            )
            last = self.total_steps if self.total_steps is not None else training_steps
            for scheduler in built.schedulers:
                scheduler.lr_lambdas = [
                    partial(_until, last, factor) for factor in scheduler.lr_lambdas
                ]
            return built


def _rate(phases: tuple[Phase, ...], step: int) -> float:
    """Return the factor of a step, counted from 0."""
    return rate(phases, step + 1)


def _until(last: int, factor: Callable[[int], float], step: int) -> float:
    """Return the factor of a step, counted from 0; ``last`` is the first unscheduled step."""
    return factor(min(step, last))
