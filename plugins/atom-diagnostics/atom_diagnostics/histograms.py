"""Count the values of each layer in bins of powers of two, the same on every layout."""

from __future__ import annotations

from typing import Any

import torch

from atom.plugin import CallbackContext, TrainerCallback, Training
from atom_diagnostics import layers
from atom_diagnostics.config import Histograms
from atom_diagnostics.measuring import Measuring

LOWEST, HIGHEST = -40, 10
"""Exponents: values below 2**LOWEST share one bin with zero, those from 2**HIGHEST the last one."""

_CENTER = HIGHEST - LOWEST
EDGES = [
    *(-(2.0**exponent) for exponent in range(HIGHEST, LOWEST - 1, -1)),
    *(2.0**exponent for exponent in range(LOWEST, HIGHEST + 1)),
]
"""The ends of the bins."""

_BINS = len(EDGES) - 1
_CHUNK = 2**24
"""Elements that are counted at a time."""


def callback(config: Histograms, context: CallbackContext) -> TrainerCallback:
    """Return the callback of a run."""
    return LayerHistograms(config, context.steps)


class LayerHistograms(Measuring):
    """Logs the histograms ``weight/LAYER``, ``gradient/LAYER`` and ``activation/LAYER``.

    The number of a bin is its share of the layer's finite values. ``not_finite/KIND.LAYER`` is
    the share of others, and is logged if there are any.
    """

    def __init__(self, config: Histograms, last_step: int) -> None:
        super().__init__(config.interval, last_step)
        self.config = config

    def on_start(self, training: Training) -> None:
        found = [layer for layer, _ in layers.modules(training)]
        found += [layer for layer, _ in layers.parameters(training)]
        self._layers = layers.all_layers(found)

    def before_step(self, training: Training) -> None:
        self._due = self.wants_row(training.step)
        if self._due:
            self._outputs = self._sums(training)
            hooks = [(module, self._adder(layer)) for layer, module in layers.modules(training)]
            self._hooks = layers.Hooks(training, hooks if self.config.activations else [])

    def after_backward(self, training: Training) -> None:
        if not self._due:
            return
        measured: dict[str, layers.Sums] = {}
        if self.config.weights:
            measured["weight"] = self._sums(training)
            for layer, parameter in layers.parameters(training):
                _count(measured["weight"], layer, parameter, training)
        if self.config.gradients:
            measured["gradient"] = self._sums(training)
            for layer, parameter in layers.parameters(training):
                if parameter.grad is not None:
                    _count(measured["gradient"], layer, parameter.grad, training)
        if self.config.activations:
            measured["activation"] = self._outputs
        shares: dict[str, list[float]] = {}
        for kind, sums in measured.items():
            for layer, totals in zip(self._layers, sums.totals(), strict=True):
                *counts, lost, number = totals
                if number > lost:
                    shares[f"{kind}/{layer}"] = [count / (number - lost) for count in counts]
                if lost:
                    training.log({f"not_finite/{kind}.{layer}": lost / number})
        if self.config.activations and not any(name.startswith("act") for name in shares):
            training.alert(
                "no activation could be measured: a compiled model or a CUDA graph calls no "
                "hooks; valid: activations=false"
            )
        training.log_histograms(EDGES, shares)

    def _sums(self, training: Training) -> layers.Sums:
        return layers.Sums(self._layers, training.device, width=_BINS + 2)

    def _adder(self, layer: str) -> Any:
        def add(called: layers.Call) -> None:
            if (activation := called.activation) is not None:
                # Ranks that hold the same part of an output count it alike: shares are right.
                _add(self._outputs, layer, activation, 1.0)

        return add


def counted(tensor: torch.Tensor) -> torch.Tensor:
    """Return the number of values in each bin, and at last of values that are not finite."""
    counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=tensor.device)
    for values in tensor.detach().flatten().split(_CHUNK):
        wide = values.float()
        # |x| is from 2**(exponent - 1) to 2**exponent.
        exponents = torch.frexp(wide).exponent
        away = (exponents - LOWEST).clamp_(0, _CENTER)
        bins = torch.where(wide < 0, _CENTER - away, _CENTER + away)
        bins = torch.where(wide.isfinite() & (wide != 0), bins, _CENTER)
        bins = bins.masked_fill_(~wide.isfinite(), _BINS)
        counts += torch.bincount(bins, minlength=_BINS + 1)
    return counts


def _count(sums: layers.Sums, layer: str, tensor: torch.Tensor, training: Training) -> None:
    _add(sums, layer, layers.local(tensor), 1 / layers.copies(tensor, training))


def _add(sums: layers.Sums, layer: str, tensor: torch.Tensor, share: float) -> None:
    sums.add(layer, [counted(tensor) * share], tensor.numel() * share)
