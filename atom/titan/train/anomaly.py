"""Detect numerical faults: a loss or gradient norm that is not finite, or a spike.

Two numbers of each step are judged, both from one reduction over all ranks: the loss, and the
gradient norm before clipping. Every rank holds the same bits of them, whatever its pipeline stage
or place in the layout, and the same history. So all ranks decide alike without communication.
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
"""Standard deviation of a normal distribution, in units of the median absolute deviation."""

_LEAST_DEVIATION = 0.01
"""Lower bound of the deviation, relative to the median: small noise is not a spike."""


@dataclass(frozen=True)
class Fault:
    """A fault of a step; ``reason`` is a sentence."""

    step: int
    kind: Literal["non_finite", "spike"]
    reason: str
    loss: float
    grad_norm: float


class Anomalies(Stateful):
    """A history of the last good steps that detects outliers.

    A checkpoint contains its state, so a resumed run judges like an uninterrupted one.
    """

    def __init__(self, settings: Faults) -> None:
        self._settings = settings
        self._good: deque[tuple[float, float]] = deque(maxlen=settings.window)
        self._faults: list[int] = []

    def judge(self, step: int, loss: float, grad_norm: float) -> Fault | None:
        """Return the fault of a step, or None and add its values to the history."""
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
        """Count a fault at ``step``; return whether the number of faults is tolerated."""
        window = self._settings.window
        # Rolled-back faults keep their step number: repeated faults at one place add up.
        self._faults = [each for each in self._faults if abs(each - step) < window] + [step]
        return len(self._faults) <= self._settings.budget

    def _limit(self, values: list[float]) -> tuple[float, float]:
        median = statistics.median(values)
        spread = statistics.median(abs(value - median) for value in values)
        deviation = max(_MAD_TO_DEVIATION * spread, _LEAST_DEVIATION * abs(median))
        return median, median + self._settings.spike_threshold * deviation

    @contextmanager
    def faults_kept(self) -> Iterator[None]:
        """Keep the count of faults when a state is loaded within the context."""
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
    """The loss and the gradient norm of a step, reduced over all ranks without waiting.

    The cost is one reduction of 16 bytes per step.
    """

    def __init__(self, device: torch.device, *, tensor_parallel: int) -> None:
        """Set the number of ranks that hold each share of the loss, ``tensor_parallel``."""
        self._device = device
        self._known_by = tensor_parallel
        self._loss: torch.Tensor | None = None

    def begin(self) -> None:
        """Reset for a new step."""
        self._loss = None

    def add(self, loss: torch.Tensor) -> None:
        """Add the loss of a micro-batch on this rank: its share of the mean over the batch."""
        share = (loss.full_tensor() if isinstance(loss, DTensor) else loss).detach().double()
        self._loss = share.clone() if self._loss is None else self._loss.add_(share)

    def reduced(self, grad_norm: torch.Tensor) -> torch.Tensor:
        """Return the loss and the gradient norm on the device, with the same bits on every rank."""
        loss = self._loss
        if loss is None:  # this rank is not on the last stage
            loss = torch.zeros((), dtype=torch.float64, device=self._device)
        ranks = dist.get_world_size()
        # All ranks already have the same norm; if they did not, they would still decide alike.
        values = torch.stack(
            [loss.reshape(()) / self._known_by, grad_norm.detach().double().reshape(()) / ranks]
        )
        dist.all_reduce(values)
        return values


class Late:
    """Values of a step for reading one step later; on a GPU without waiting for it.

    ``documents`` are this rank's documents of the step.
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
        """Return the values, which are ready by the end of the next step."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
