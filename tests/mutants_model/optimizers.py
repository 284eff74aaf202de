"""Each function returns the part of an optimizer with one fault."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from atom.plugin import OptimizerContext, OptimizerPart

__all__ = [
    "counts_steps_itself",
    "decays_all",
    "hides_its_state",
    "moves_at_rest",
    "norms_its_shard",
    "twin",
]


def part(optimizer: type[torch.optim.Optimizer]) -> list[OptimizerPart]:
    options = {"lr": 0.01, "weight_decay": 0.1}
    return [OptimizerPart(optimizer=optimizer, options=options, state=prod)]


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def twin(_config: None, _context: OptimizerContext) -> list[OptimizerPart]:
    return part(Twin)


class Twin(torch.optim.Optimizer):
    """Momentum with decoupled decay."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01, "weight_decay": 0.0})
        self.kept: dict[torch.Tensor, Any] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.of(parameter)
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(parameter)
                mean = local(state["mean"])
                mean.lerp_(self.seen(local(parameter.grad)), 0.5)
                local(parameter).mul_(1 - self.decay(group)).sub_(mean * group["lr"])

    def of(self, parameter: torch.Tensor) -> Any:
        return self.state[parameter]

    def seen(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient

    def decay(self, group: dict[str, Any]) -> float:
        return float(group["lr"] * group["weight_decay"])


def decays_all(_config: None, _context: OptimizerContext) -> list[OptimizerPart]:
    """Norms without decay, too."""
    return part(DecaysAll)


class DecaysAll(Twin):
    def decay(self, group: dict[str, Any]) -> float:
        return float(group["lr"] * 0.1)


def hides_its_state(_config: None, _context: OptimizerContext) -> list[OptimizerPart]:
    """No checkpoint has it."""
    return part(HidesItsState)


class HidesItsState(Twin):
    def of(self, parameter: torch.Tensor) -> Any:
        return self.kept.setdefault(parameter, {})


def moves_at_rest(_config: None, _context: OptimizerContext) -> list[OptimizerPart]:
    """The step that creates the state changes weights."""
    return part(MovesAtRest)


class MovesAtRest(Twin):
    def decay(self, group: dict[str, Any]) -> float:
        return 0.01 * float(group["weight_decay"])


def norms_its_shard(_config: None, _context: OptimizerContext) -> list[OptimizerPart]:
    """With more ranks, shards are smaller, and so are their norms."""
    return part(NormsItsShard)


class NormsItsShard(Twin):
    def seen(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / (gradient.norm() + 1e-6)


def counts_steps_itself(_config: None, _context: OptimizerContext) -> list[OptimizerPart]:
    """A resumed run begins to count again."""
    return part(CountsStepsItself)


class CountsStepsItself(Twin):
    steps = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.steps += 1
        super().step(closure)

    def seen(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / self.steps
