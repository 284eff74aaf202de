"""Numerical faults: a loss or a gradient norm that is not finite, or far from those before it.

What is judged are two numbers that one reduction over all ranks has made, the loss and the norm of
the gradient before it is clipped. Every rank holds the same bits of them, whatever its pipeline
stage or place in the layout, and has the same history; so all decide alike, and nobody has to ask.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from atom.recipe.sections import Faults

_MAD_TO_DEVIATION = 1.4826
"""The standard deviation of a normal distribution, in median absolute deviations."""

_LEAST_DEVIATION = 0.01
"""Of the median: a loss that hardly moves is not to make a spike of every step."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a step; ``reason`` is a sentence."""

    step: int
    kind: Literal["non_finite", "spike"]
    reason: str
    loss: float
    grad_norm: float


class Anomalies(Stateful):
    """The values of the last good steps, and what is out of line with them.

    Its state is saved with a checkpoint, so that an interrupted run judges as one that was not.
    """

    def __init__(self, settings: Faults) -> None:
        self._settings = settings
        self._good: deque[tuple[float, float]] = deque(maxlen=settings.window)
        self._faults: list[int] = []

    def judge(self, step: int, loss: float, grad_norm: float) -> Fault | None:
        """Return what is wrong with a step, or None; then its values are part of the history."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return Fault(
                    step, "non_finite", f"the {name} of step {step} is {value}", loss, grad_norm
                )
        if self._settings.spike != "none" and len(self._good) == self._settings.window:
            for index, (name, value) in enumerate((("loss", loss), ("gradient norm", grad_norm))):
                median, limit = self._limit([values[index] for values in self._good])
                if value > limit:
                    reason = (
                        f"the {name} of step {step} is {value:.4g}, above {limit:.4g} (the median "
                        f"of the last {self._settings.window} steps is {median:.4g})"
                    )
                    return Fault(step, "spike", reason, loss, grad_norm)
        self._good.append((loss, grad_norm))
        return None

    def within_budget(self, step: int) -> bool:
        """Count a fault at ``step``; return whether so many are put up with."""
        window = self._settings.window
        # Steps that were rolled back are counted where they were: the faults of a spot add up.
        self._faults = [each for each in self._faults if abs(each - step) < window] + [step]
        return len(self._faults) <= self._settings.budget

    def _limit(self, values: list[float]) -> tuple[float, float]:
        median = statistics.median(values)
        spread = statistics.median(abs(value - median) for value in values)
        deviation = max(_MAD_TO_DEVIATION * spread, _LEAST_DEVIATION * abs(median))
        return median, median + self._settings.spike_threshold * deviation

    @contextmanager
    def faults_kept(self) -> Iterator[None]:
        """Count the faults so far on, whatever state is loaded meanwhile."""
        faults = self._faults
        yield
        self._faults = faults

    def state_dict(self) -> dict[str, Any]:
        return {"good": [list(values) for values in self._good], "faults": list(self._faults)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._good.clear()
        self._good.extend((loss, norm) for loss, norm in state_dict["good"])
        self._faults = list(state_dict["faults"])


class Measured:
    """The loss and the gradient norm of a step, reduced over all ranks without waiting for them.

    It costs one reduction of 16 bytes a step.
    """

    def __init__(self, device: torch.device, *, tensor_parallel: int) -> None:
        """``tensor_parallel`` is how many ranks know each share of the loss."""
        self._device = device
        self._known_by = tensor_parallel
        self._loss: torch.Tensor | None = None

    def begin(self) -> None:
        """Forget the step before."""
        self._loss = None

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a microbatch on this rank: its share of the mean over the batch."""
        share = (loss.full_tensor() if isinstance(loss, DTensor) else loss).detach().double()
        self._loss = share.clone() if self._loss is None else self._loss.add_(share)

    def reduced(self, grad_norm: torch.Tensor) -> torch.Tensor:
        """Return the loss and the gradient norm, the same bits on every rank, on the device."""
        loss = self._loss
        if loss is None:  # of another pipeline stage
            loss = torch.zeros((), dtype=torch.float64, device=self._device)
        ranks = dist.get_world_size()
        # The norm is the same on all ranks already; if it were not, they would still decide alike.
        values = torch.stack(
            [loss.reshape(()) / self._known_by, grad_norm.detach().double().reshape(()) / ranks]
        )
        dist.all_reduce(values)
        return values


class Late:
    """Values of a step, to be read a step later: those on a GPU without waiting for it.

    ``documents`` are those of the step on this rank.
    """

    def __init__(self, step: int, values: torch.Tensor, documents: list[str]) -> None:
        self.step = step
        self.documents = documents
        self._values, self._copied = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Return the values, which were there before the step after this one was."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
