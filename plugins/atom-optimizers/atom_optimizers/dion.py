"""Dion, "Distributed Orthonormalized Updates", arXiv:2504.05295, algorithm 1, for sharded matrices.

An update is a matrix of low rank with orthonormal factors, by one step of power iteration from the
last one; what it leaves out of the momentum stays there. A rank multiplies its shards, and adds up
factors of low rank alone: no rank has a whole matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from atom.plugin import OptimizerContext, OptimizerPart
from atom_optimizers import config
from atom_optimizers.build import adaptive, matrices_of_layers
from atom_optimizers.sums import add_up, local

_ORTHONORMALIZATIONS = 2
"""A second one removes the error of the first (CholeskyQR2)."""

_SHIFT = 1e-14
"""Added to the Gram matrix in float64, relative to its trace: a matrix can have a lower rank."""

_ROUNDING = 1e-4
"""Length of a column of rounding errors in float32, relative to all columns."""


def build(config: config.Dion, context: OptimizerContext) -> list[OptimizerPart]:
    """Return Dion for the matrices of layers, and AdamW for all else."""
    options = ("lr", "weight_decay", "momentum", "rank_fraction")
    matrices = OptimizerPart(
        optimizer=Dion,
        options={name: getattr(config, name) for name in options},
        updates=matrices_of_layers,
        state=_Elements(config.rank_fraction),
        state_dtype="float32",
    )
    return [matrices, adaptive(torch.optim.AdamW, config, context, lr=config.adamw_lr)]


class _Elements:
    """The elements of the state for a matrix."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction

    def __call__(self, shape: tuple[int, ...]) -> int:
        return prod(shape) + shape[1] * _rank(shape, self.fraction)


class Dion(torch.optim.Optimizer):
    """Dion for matrices, which may be DTensors."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-2, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every parameter that has a gradient, of shape (rows, columns).

        All ranks that share the model must call this together.
        """
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            held = [self._momentum(parameter, group) for parameter in parameters]
            rights = [local(self.state[p]["right"]) for p in parameters]
            lefts = [m @ q for m, q in zip(held, rights, strict=True)]
            add_up((left, p, 1) for p, left in zip(parameters, lefts, strict=True))
            lefts = _orthonormal(parameters, lefts)
            products = [m.T @ p for m, p in zip(held, lefts, strict=True)]
            add_up((each, p, 0) for p, each in zip(parameters, products, strict=True))
            squares = [each.square().sum(0) for each in products]
            add_up((each, p, 1) for p, each in zip(parameters, squares, strict=True))
            for p, m, left, right, product, square in zip(
                parameters, held, lefts, rights, products, squares, strict=True
            ):
                m.sub_(left @ product.T, alpha=1 - group["momentum"])
                # A column that is no longer than rounding errors keeps its direction, and moves
                # nothing: normalized, it would be noise as large as the others.
                told = square > _ROUNDING**2 * square.sum()
                normal = product / square.sqrt().clamp(min=torch.finfo(square.dtype).tiny)
                right.copy_(torch.where(told, normal, right))
                weight, (rows, columns) = local(p), p.shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                moved = torch.where(told, normal, 0)
                scale = group["lr"] * (rows / columns) ** 0.5
                weight.sub_((left @ moved.T * scale).to(weight.dtype))

    def _momentum(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Return this rank's shard of the momentum with the gradient added."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["right"] = _first(
                parameter, _rank(tuple(parameter.shape), group["rank_fraction"])
            )
        assert parameter.grad is not None
        return local(state["momentum"]).add_(local(parameter.grad))


def _rank(shape: tuple[int, ...], fraction: float) -> int:
    return max(1, ceil(fraction * min(shape)))


def _first(parameter: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the first right factor, of shape (columns, rank), the same under every layout."""
    columns = parameter.shape[1]
    generator = torch.Generator().manual_seed(columns)
    whole = torch.randn((columns, rank), generator=generator).to(parameter.device)
    whole /= whole.norm(dim=0)
    if not isinstance(parameter, DTensor):
        return whole
    placements = [
        Shard(0) if placement.is_shard(1) else Replicate() for placement in parameter.placements
    ]
    return distribute_tensor(whole, parameter.device_mesh, placements, src_data_rank=None)


def _orthonormal(
    parameters: Sequence[torch.Tensor], factors: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return this rank's rows of the factors, of shape (rows, rank), with orthonormal columns."""
    found = [factor.double() for factor in factors]
    for _ in range(_ORTHONORMALIZATIONS):
        grams = [each.T @ each for each in found]
        add_up((gram, p, 0) for p, gram in zip(parameters, grams, strict=True))
        for number, gram in enumerate(grams):
            shift = _SHIFT * gram.trace() + torch.finfo(gram.dtype).tiny
            upper = torch.linalg.cholesky(
                gram + shift * torch.eye(len(gram), dtype=gram.dtype, device=gram.device),
                upper=True,
            )
            found[number] = torch.linalg.solve_triangular(
                upper, found[number], upper=True, left=False
            )
    return [each.float() for each in found]
