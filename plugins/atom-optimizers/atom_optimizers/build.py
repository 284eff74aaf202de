"""Adam, AdamW and Muon, which torch and ATOM implement."""

from __future__ import annotations

from math import prod

import torch

from atom.errors import UserError
from atom.plugin import OptimizerContext, OptimizerPart
from atom.titan.optim.muon import Muon as OnOwners
from atom.titan.optim.muon import is_matrix_of_layer
from atom_optimizers.config import Adam, AdamW, Dion, Muon


def adamw(config: AdamW, context: OptimizerContext) -> list[OptimizerPart]:
    """Return torch's AdamW."""
    return [adaptive(torch.optim.AdamW, config, context)]


def adam(config: Adam, context: OptimizerContext) -> list[OptimizerPart]:
    """Return torch's Adam."""
    return [adaptive(torch.optim.Adam, config, context)]


def muon(config: Muon, context: OptimizerContext) -> list[OptimizerPart]:
    """Return Muon for the matrices of layers, and AdamW.

    Updates are scaled to the size of AdamW's, so the learning rate and weight decay still fit.
    """
    matrices = OptimizerPart(
        optimizer=OnOwners,
        options={
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "momentum": config.momentum,
            "adjust_lr_fn": "match_rms_adamw",
        },
        updates=matrices_of_layers,
        state=prod,
    )
    return [matrices, adaptive(torch.optim.AdamW, config, context)]


def matrices_of_layers(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a parameter is a matrix of a layer."""
    return is_matrix_of_layer(name, len(shape))


def adaptive(
    optimizer: type[torch.optim.Optimizer],
    config: Adam | AdamW | Dion | Muon,
    context: OptimizerContext,
    *,
    lr: float | None = None,
) -> OptimizerPart:
    """Return torch's Adam or AdamW for every parameter, with another learning rate if given."""
    wanted, dtype = config.state_dtype, context.parameter_dtype
    if wanted not in (None, dtype) and context.device == "cpu":
        raise UserError(
            "only a GPU has a fused step for moments in another dtype than that of the parameters, "
            f"training.dtype={dtype}",
            valid="null",
            key="optimizer.state_dtype",
            value=wanted,
        )
    return OptimizerPart(
        optimizer=optimizer,
        options={
            "lr": config.lr if lr is None else lr,
            "betas": tuple(config.betas),
            "eps": config.eps,
            "weight_decay": config.weight_decay,
        },
        state=_two_moments,
        state_dtype=config.state_dtype,
    )


def _two_moments(shape: tuple[int, ...]) -> int:
    return 2 * prod(shape)
