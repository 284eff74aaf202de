"""Count the values of each layer in bins of powers of two, the same on every layout."""

from __future__ import annotations

from collections.abc import Sequence
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
_RAW = 2**9
_CHUNK = {"cpu": 2**16}
"""Elements that are counted at a time: what a cache of the CPU holds."""

_MOST = 2**24
"""The same on other devices."""


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
                *counts, lost = in_bins(totals[:-1])
                number = totals[-1]
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
        return layers.Sums(self._layers, training.device, width=_RAW + 1)

    def _adder(self, layer: str) -> Any:
        def add(called: layers.Call) -> None:
            if (activation := called.activation) is not None:
                # Ranks that hold the same part of an output count it alike: shares are right.
                _add(self._outputs, layer, activation, 1.0)

        return add


def counted(tensor: torch.Tensor) -> torch.Tensor:
    """Return the number of values with each sign and exponent: the first nine bits of a float32."""
    counts = torch.zeros(_RAW, dtype=torch.int64, device=tensor.device)
    chunk = _CHUNK.get(tensor.device.type, _MOST)
    for values in tensor.detach().flatten().split(chunk):
        signs_and_exponents = (values.float().view(torch.int32) >> 23).bitwise_and_(_RAW - 1)
        counts += torch.bincount(signs_and_exponents, minlength=_RAW)
    return counts


def in_bins(counts: Sequence[float]) -> list[float]:
    """Return the number of values in each bin, and at last of values that are not finite.

    Args:
        counts: as :func:`counted` returns them.
    """
    found = [0.0] * (_BINS + 1)
    for number, count in zip(_BIN_OF, counts, strict=True):
        found[number] += count
    return found


def _bin_of(bits: int) -> int:
    """Return the bin of floats with this sign and exponent; not finite: the one after the last."""
    exponent = (bits & 0xFF) - 127  # |x| is from 2**exponent to 2**(exponent + 1)
    if exponent == 128:
        return _BINS
    away = min(max(exponent - LOWEST + 1, 0), _CENTER)
    return _CENTER - away if bits >> 8 else _CENTER + away


_BIN_OF = [_bin_of(bits) for bits in range(_RAW)]


def _count(sums: layers.Sums, layer: str, tensor: torch.Tensor, training: Training) -> None:
    _add(sums, layer, layers.local(tensor), 1 / layers.copies(tensor, training))


def _add(sums: layers.Sums, layer: str, tensor: torch.Tensor, share: float) -> None:
    sums.add(layer, [counted(tensor) * share], tensor.numel() * share)
