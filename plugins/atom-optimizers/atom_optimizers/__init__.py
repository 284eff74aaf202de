"""Optimizers: AdamW, Adam, Muon, Dion, Lion and Adafactor."""

from collections.abc import Iterator

from atom.plugin import Optimizer, hookimpl

ATOM_INTERFACE = 1
"""The version of :mod:`atom.plugin` that this package is written for."""

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@hookimpl
def atom_optimizers() -> Iterator[Optimizer]:
    yield Optimizer(
        name="AdamW",
        summary="Adam with decoupled weight decay",
        config="atom_optimizers.config:AdamW",
        build="atom_optimizers.build:adamw",
        state=_MOMENTS,
        operations=("optimizer_step",),
    )
    yield Optimizer(
        name="Adam",
        summary="Adam, with weight decay added to the gradient",
        config="atom_optimizers.config:Adam",
        build="atom_optimizers.build:adam",
        state=_MOMENTS,
        operations=("optimizer_step",),
    )
    yield Optimizer(
        name="Muon",
        summary="Muon for the matrices of layers, AdamW for all else",
        config="atom_optimizers.config:Muon",
        build="atom_optimizers.build:muon",
        state=(*_MOMENTS, "momentum_buffer"),
        operations=("newton_schulz", "optimizer_step"),
    )
    yield Optimizer(
        name="Dion",
        summary="Dion for the matrices of layers, AdamW for all else",
        config="atom_optimizers.config:Dion",
        build="atom_optimizers.dion:build",
        state=(*_MOMENTS, "momentum", "right"),
        operations=("optimizer_step",),
    )
    yield Optimizer(
        name="Lion",
        summary="the sign of the momentum, with decoupled weight decay",
        config="atom_optimizers.config:Lion",
        build="atom_optimizers.lion:build",
        state=("exp_avg",),
    )
    yield Optimizer(
        name="Adafactor",
        summary="a second moment of rows and columns alone",
        config="atom_optimizers.config:Adafactor",
        build="atom_optimizers.adafactor:build",
        state=("step", "row_var", "col_var", "variance"),
    )
