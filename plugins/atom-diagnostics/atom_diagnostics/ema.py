"""Average the weights of a run: an exponential moving average in float32, sharded like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from atom.plugin import CallbackContext, TrainerCallback, Training
from atom_diagnostics import layers
from atom_diagnostics.config import Ema


def callback(config: Ema, context: CallbackContext) -> TrainerCallback:  # noqa: ARG001
    """Return the callback of a run."""
    return MovingAverage(config)


class MovingAverage(TrainerCallback):
    """Average ``decay * average + (1 - decay) * weights`` after steps.

    Up to the step ``start``, and until the first step of a run whose checkpoint has no average,
    the average equals the weights.
    """

    def __init__(self, config: Ema) -> None:
        self.config = config
        self._averages: list[torch.Tensor] = []
        self._loaded = False

    def on_start(self, training: Training) -> None:
        self._averages = [
            torch.empty_like(weight, dtype=torch.float32) for weight in _weights(training)
        ]
        self._restart(training)

    def on_gone_back(self, training: Training) -> None:
        if not self._loaded:
            self._restart(training)
        self._loaded = False

    def after_optimizer(self, training: Training) -> None:
        since = training.step - self.config.start
        if since <= 0:
            self._restart(training)
        elif since % self.config.interval == 0:
            self._update(training)

    def averages(self) -> Sequence[torch.Tensor]:
        return self._averages

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: ARG002
        self._loaded = True

    def _restart(self, training: Training) -> None:
        for average, weight in zip(self._averages, _weights(training), strict=True):
            layers.local(average).copy_(layers.local(weight))

    def _update(self, training: Training) -> None:
        averages = [layers.local(average) for average in self._averages]
        weights = [layers.local(weight).detach() for weight in _weights(training)]
        share = 1 - self.config.decay
        if all(weight.dtype == torch.float32 for weight in weights):
            torch._foreach_lerp_(averages, weights, share)
            return
        # One at a time: a copy of all weights in float32 may not fit.
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight.float(), share)


def _weights(training: Training) -> list[torch.Tensor]:
    every = (parameter for part in training.model_parts for parameter in part.parameters())
    return [parameter for parameter in every if parameter.requires_grad]
