"""Adafactor, arXiv:1804.04235, as in torch.optim, for sharded parameters.

The second moment of a matrix is the product of the means of its rows and of its columns. Both are
float32, and sharded like the parameter along the dimension that they keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from atom.plugin import OptimizerContext, OptimizerPart
from atom_optimizers import config
from atom_optimizers.sums import add_up, like, local

Group = dict[str, Any]


def build(config: config.Adafactor, _context: OptimizerContext) -> list[OptimizerPart]:
    """Return one part, which updates every parameter."""
    return [
        OptimizerPart(
            optimizer=Adafactor, options=config.model_dump(), state=_elements, state_dtype="float32"
        )
    ]


def _elements(shape: tuple[int, ...]) -> int:
    if len(shape) < 2:
        return prod(shape)
    return prod(shape[:-1]) + prod(shape[:-2]) * shape[-1]


class Adafactor(torch.optim.Optimizer):
    """torch's Adafactor, with sums over the ranks that shard a parameter."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-2, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every parameter that has a gradient.

        All ranks that share the model must call this together.
        """
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                self._begin(parameter)
                self.state[parameter]["step"] += 1
            self._estimate(parameters, group)
            means = self._means(parameters)
            norms = [local(p).float().square().sum() for p in parameters]
            sizes = [
                self._direction(p, m, group).square().sum()
                for p, m in zip(parameters, means, strict=True)
            ]
            add_up((total, p, None) for p, total in zip(parameters, norms, strict=True))
            add_up((total, p, None) for p, total in zip(parameters, sizes, strict=True))
            for parameter, mean, norm, size in zip(parameters, means, norms, sizes, strict=True):
                self._change(parameter, mean, norm, size, group)

    def _begin(self, parameter: torch.Tensor) -> None:
        state, weight, shape = self.state[parameter], local(parameter), tuple(parameter.shape)
        if state:
            return
        state["step"] = torch.zeros(())
        if len(shape) < 2:
            state["variance"] = torch.zeros_like(parameter, dtype=torch.float32)
            return
        rows = weight.new_zeros((*weight.shape[:-1], 1), dtype=torch.float32)
        columns = weight.new_zeros((*weight.shape[:-2], 1, weight.shape[-1]), dtype=torch.float32)
        state["row_var"] = like(parameter, rows, (*shape[:-1], 1), -1)
        state["col_var"] = like(parameter, columns, (*shape[:-2], 1, shape[-1]), -2)

    def _estimate(self, parameters: Sequence[torch.Tensor], group: Group) -> None:
        """Update the second moments."""
        sums = []
        for parameter in parameters:
            square = _gradient(parameter).square()
            if parameter.ndim < 2:
                self._remember(parameter, "variance", square, group)
                continue
            sums += [(square.sum(dim, keepdim=True), parameter, dim) for dim in (-1, -2)]
        add_up(sums)
        for total, parameter, dim in sums:
            name = "row_var" if dim == -1 else "col_var"
            self._remember(parameter, name, total / parameter.shape[dim], group)

    def _remember(
        self, parameter: torch.Tensor, name: str, square: torch.Tensor, group: Group
    ) -> None:
        state = self.state[parameter]
        local(state[name]).lerp_(square, state["step"].item() ** group["beta2_decay"])

    def _means(self, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Return the mean of each matrix's rows; None for other parameters."""
        means = [
            local(self.state[p]["row_var"]).sum(-2, keepdim=True) if p.ndim > 1 else None
            for p in parameters
        ]
        add_up(
            (total, p, -2) for p, total in zip(parameters, means, strict=True) if total is not None
        )
        return [
            None if total is None else total / p.shape[-2]
            for p, total in zip(parameters, means, strict=True)
        ]

    def _direction(
        self, parameter: torch.Tensor, mean: torch.Tensor | None, group: Group
    ) -> torch.Tensor:
        """Return this rank's shard of the update before clipping.

        It is computed twice, so that those of all parameters need not be kept.
        """
        state, eps = self.state[parameter], _least(parameter, group)
        if mean is None:
            variance = local(state["variance"])
        else:
            variance = local(state["row_var"]) * local(state["col_var"]) / mean.clamp(min=eps)
        return variance.clamp(min=eps * eps).rsqrt() * _gradient(parameter)

    def _change(
        self,
        parameter: torch.Tensor,
        mean: torch.Tensor | None,
        norm: torch.Tensor,
        size: torch.Tensor,
        group: Group,
    ) -> None:
        numel, weight = parameter.numel(), local(parameter)
        rate = min(group["lr"], self.state[parameter]["step"].item() ** -0.5)
        scale = (norm / numel).sqrt().clamp(min=group["eps2"]) * rate
        clipped = ((size / numel).sqrt() / group["clip"]).clamp(min=1)
        direction = self._direction(parameter, mean, group)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_((direction * (scale / clipped)).to(weight.dtype))


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return local(parameter.grad).float()


def _least(parameter: torch.Tensor, group: Group) -> float:
    eps = group["eps1"]
    return float(torch.finfo(parameter.dtype).eps if eps is None else eps)
