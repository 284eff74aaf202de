"""Lion, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, algorithm 2."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from atom.plugin import OptimizerContext, OptimizerPart
from atom_optimizers import config
from atom_optimizers.sums import local


def build(config: config.Lion, _context: OptimizerContext) -> list[OptimizerPart]:
    """Return one part, which updates every parameter."""
    options = {**config.model_dump(), "betas": tuple(config.betas)}
    return [
        OptimizerPart(optimizer=Lion, options=options, state=prod, state_dtype=config.state_dtype)
    ]


class Lion(torch.optim.Optimizer):
    """The sign of the momentum, with decoupled weight decay. Each rank updates its shards."""

    def __init__(self, params: Any) -> None:
        super().__init__(
            params,
            {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "state_dtype": None},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            half = torch.bfloat16 if group["state_dtype"] == "bfloat16" else None
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=half)
                weight, gradient = local(parameter), local(parameter.grad)
                kept = local(state["exp_avg"])
                mean = kept.to(weight.dtype)
                direction = mean.lerp(gradient, 1 - beta1).sign_()
                weight.mul_(1 - lr * group["weight_decay"]).add_(direction, alpha=-lr)
                kept.copy_(mean.lerp(gradient, 1 - beta2))
