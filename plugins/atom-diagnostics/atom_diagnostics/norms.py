"""Measure norms of each layer, the same on every layout."""

from __future__ import annotations

import math
from typing import Any

import torch

from atom.plugin import CallbackContext, TrainerCallback, Training
from atom_diagnostics import layers
from atom_diagnostics.config import Norms
from atom_diagnostics.measuring import Measuring
from atom_diagnostics.running_away import RunningAway


def callback(config: Norms, context: CallbackContext) -> TrainerCallback:
    """Return the callback of a run."""
    return LayerNorms(config, context.steps)


class LayerNorms(Measuring):
    """Logs ``gradient/LAYER``, ``weight/LAYER``, ``update/LAYER`` and ``activation/LAYER``.

    The first three are L2 norms: the squares of ``gradient`` add up to the square of
    ``grad_norm``. ``activation`` is the root mean square of the layer's output over the batch.
    """

    def __init__(self, config: Norms, last_step: int) -> None:
        super().__init__(config.interval, last_step)
        self.config = config
        self.running_away = RunningAway(config.alert) if config.alert is not None else None
        self._before: list[torch.Tensor] = []

    def on_start(self, training: Training) -> None:
        found = [layer for layer, _ in layers.modules(training)]
        found += [layer for layer, _ in layers.parameters(training)]
        self._layers = layers.all_layers(found)

    def before_step(self, training: Training) -> None:
        self._before = []
        self._due = self.wants_row(training.step)
        if not self._due:
            return
        self._outputs = self._sums(training)
        self._hooks = layers.Hooks(
            training,
            [(module, self._adder(layer)) for layer, module in layers.modules(training)]
            if self.config.activations
            else [],
        )

    def after_backward(self, training: Training) -> None:
        if not self._due:
            return
        measured: dict[str, dict[str, float]] = {}
        if self.config.activations:
            measured["activation"] = self._means()
            if not measured["activation"]:
                training.alert(
                    "no activation could be measured: a compiled model or a CUDA graph calls no "
                    "hooks; valid: activations=false"
                )
        if self.config.gradients:
            sums = self._sums(training)
            for layer, parameter in layers.parameters(training):
                if parameter.grad is not None:
                    share = 1 / layers.copies(parameter.grad, training)
                    sums.add_squares(layer, layers.local(parameter.grad), share)
            measured["gradient"] = self._roots(sums)
        if self.config.weights:
            sums = self._sums(training)
            for layer, parameter in layers.parameters(training):
                share = 1 / layers.copies(parameter, training)
                sums.add_squares(layer, layers.local(parameter), share)
            measured["weight"] = self._roots(sums)
        self._tell(training, measured)

    def before_optimizer(self, training: Training, grad_norm: torch.Tensor) -> None:  # noqa: ARG002
        if self._due and self.config.updates:
            pairs = layers.parameters(training)
            self._before = [layers.local(parameter).detach().clone() for _, parameter in pairs]

    def after_optimizer(self, training: Training) -> None:
        if not self._before:
            return
        sums = self._sums(training)
        pairs = layers.parameters(training)
        for (layer, parameter), before in zip(pairs, self._before, strict=True):
            change = layers.local(parameter).detach() - before
            sums.add_squares(layer, change, 1 / layers.copies(parameter, training))
        self._before = []
        self._tell(training, {"update": self._roots(sums)})

    def close(self, training: Training) -> None:  # noqa: ARG002
        self._before = []

    def state_dict(self) -> dict[str, Any]:
        return {"running_away": self.running_away.state() if self.running_away else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.running_away is not None and state["running_away"] is not None:
            self.running_away.load(state["running_away"])

    def _tell(self, training: Training, measured: dict[str, dict[str, float]]) -> None:
        for kind, values in measured.items():
            training.log({f"{kind}/{layer}": value for layer, value in values.items()})
        if self.running_away is None:
            return
        reasons = [
            reason
            for kind, values in measured.items()
            for reason in self.running_away.judge(kind, values)
        ]
        for reason in reasons:
            training.alert(reason)
        if reasons and self.running_away.rule.stop:
            training.stop(reasons[0])

    def _sums(self, training: Training) -> layers.Sums:
        return layers.Sums(self._layers, training.device, width=2)

    def _roots(self, sums: layers.Sums) -> dict[str, float]:
        pairs = zip(self._layers, sums.totals(), strict=True)
        return {layer: math.sqrt(total) for layer, (total, count) in pairs if count}

    def _means(self) -> dict[str, float]:
        pairs = zip(self._layers, self._outputs.totals(), strict=True)
        return {layer: math.sqrt(total / count) for layer, (total, count) in pairs if count}

    def _adder(self, layer: str) -> Any:
        def add(called: layers.Call) -> None:
            if (activation := called.activation) is not None:
                # Ranks that hold the same part of an output count it alike, so the mean is right.
                self._outputs.add_squares(layer, activation)

        return add
