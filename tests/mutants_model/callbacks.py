"""Each function returns a callback with one fault."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from atom.plugin import CallbackContext, TrainerCallback, Training

__all__ = [
    "draws_random_numbers",
    "forgets_its_state",
    "logs_its_shard",
    "scales_gradients",
    "twin",
]


def twin(_config: None, _context: CallbackContext) -> TrainerCallback:
    return Twin()


class Twin(TrainerCallback):
    """It counts the steps of the run, and measures a whole weight."""

    count = 0

    def after_optimizer(self, training: Training) -> None:
        self.count += 1
        weight: Any = training.trainer.model_parts[-1].lm_head.weight
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        training.log({"count": self.count, "norm": torch.linalg.vector_norm(whole)})

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def scales_gradients(_config: None, _context: CallbackContext) -> TrainerCallback:
    """It does not observe."""
    return ScalesGradients()


class ScalesGradients(TrainerCallback):
    def after_backward(self, training: Training) -> None:
        for part in training.model_parts:
            for parameter in part.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(1.01)


def draws_random_numbers(_config: None, _context: CallbackContext) -> TrainerCallback:
    """A model with dropout would drop others."""
    return DrawsRandomNumbers()


class DrawsRandomNumbers(TrainerCallback):
    def after_step(self, training: Training) -> None:
        torch.rand(1, device=training.device)


def forgets_its_state(_config: None, _context: CallbackContext) -> TrainerCallback:
    """It counts the steps of its process."""
    return Counts()


class Counts(TrainerCallback):
    count = 0

    def before_step(self, training: Training) -> None:
        self.count += 1
        training.log({"count": self.count})


def logs_its_shard(_config: None, _context: CallbackContext) -> TrainerCallback:
    """It takes its rank's part of a weight for the whole weight."""
    return LogsItsShard()


class LogsItsShard(TrainerCallback):
    def after_optimizer(self, training: Training) -> None:
        weight: Any = next(training.model_parts[-1].parameters())
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        training.log({"norm": torch.linalg.vector_norm(local)})
