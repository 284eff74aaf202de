"""Measure the forward passes of the steps that are logged."""

from __future__ import annotations

from typing import Any

import torch

from atom.plugin import TrainerCallback, Training
from atom_diagnostics import layers


class Measuring(TrainerCallback):
    """A callback with forward hooks at an interval, and at the last step.

    A subclass sets ``_due`` and ``_hooks`` before each step.

    Args:
        interval: steps from one measurement to the next.
        last_step: the last step of the run.
    """

    _hooks: layers.Hooks

    def __init__(self, interval: int, last_step: int) -> None:
        self._interval = interval
        self._last_step = last_step
        self._due = False

    def wants_row(self, step: int) -> bool:
        return step % self._interval == 0 or step == self._last_step

    def before_forward(self, training: Training, inputs: dict[str, Any]) -> None:  # noqa: ARG002
        if self._due:
            self._hooks.add()

    def after_forward(self, training: Training, loss: torch.Tensor) -> None:  # noqa: ARG002
        if self._due:
            self._hooks.remove()
