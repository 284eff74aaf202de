"""Build the config of a run's optimizer from its component, and compute the size of its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torchtitan.components.optimizer import ParamGroupConfig

from atom.errors import UserError
from atom.plan.layout import BYTES
from atom.plugin import Optimizer, OptimizerContext, OptimizerPart
from atom.recipe import optimizers as recipe
from atom.registry.opening import Chosen
from atom.titan.optim.kept_optimizers import STATES_IN_BFLOAT16, KeptOptimizers, part_of
from atom.titan.optim.muon import is_matrix_of_layer

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a parameter -> its unsharded shape."""


def config(
    chosen: Chosen[Optimizer], section: recipe.Optimizer, *, device: str, parameter_dtype: str
) -> KeptOptimizers.Config:
    """Return the config of a run's optimizer.

    Args:
        chosen: its component.
        section: the section of the run.
        device: ``cpu`` or ``cuda``.
        parameter_dtype: dtype of the parameters.

    Raises:
        UserError: the component refuses the device or the dtype, or breaks its contract.
    """
    context = OptimizerContext(device=device, parameter_dtype=parameter_dtype)
    parts = tuple(_checked(chosen, chosen.call("build", context)))
    fused = any(
        issubclass(part.optimizer, torch.optim.Adam) and part.state_dtype == "bfloat16"
        for part in parts
    )
    return KeptOptimizers.Config(
        param_groups=[
            ParamGroupConfig(
                pattern=".*",
                optimizer_name=part.optimizer.__name__,
                optimizer_kwargs=dict(part.options),
            )
            for part in parts
        ],
        implementation=STATES_IN_BFLOAT16 if fused else "fused",
        parts=parts,
        section=section,
    )


def _checked(chosen: Chosen[Optimizer], parts: Any) -> Sequence[OptimizerPart]:
    owner = f"{chosen.declaration.build} of {chosen.component.plugin.package}"
    if not isinstance(parts, Sequence) or not parts:
        raise UserError(f"{owner} returns no parts", key=chosen.key)
    for part in parts:
        if not isinstance(part, OptimizerPart):
            raise UserError(
                f"{owner} returns a {type(part).__name__}, and must return "
                "atom.plugin.OptimizerParts",
                key=chosen.key,
            )
        if missing := {"lr", "weight_decay"} - part.options.keys():
            raise UserError(f"{owner} returns a part without {min(missing)}", key=chosen.key)
    return parts


def check(found: KeptOptimizers.Config, shapes: Shapes) -> None:
    """Refuse groups without parameters, and parameters that no part updates.

    Raises:
        UserError: names the group or the parameter.
    """
    for number, group in enumerate(found.section.groups):
        mine = [name for name in shapes if group.has(name)]
        if not mine:
            raise UserError(
                "matches no parameter",
                valid=f"a pattern of names such as {_example(shapes)}",
                key=f"optimizer.groups.{number}.match",
                value=group.match,
            )
        if all(found.section.group(name) is not group for name in mine):
            raise UserError(
                "has no effect, because earlier groups match all of its parameters",
                key=f"optimizer.groups.{number}.match",
                value=group.match,
            )
    for name, shape in shapes.items():
        if part_of(found.parts, name, shape) is None:
            raise UserError(
                f"updates no parameter like {name}, of shape {tuple(shape)}",
                valid="another optimizer",
                key="optimizer.name",
                value=found.section.name,
            )


def _example(shapes: Shapes) -> str:
    return next((name for name in shapes if name.startswith("layers.")), next(iter(shapes), ""))


def state_bytes(
    found: KeptOptimizers.Config, shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: str
) -> int:
    """Return the bytes of state for parameters, given by name and unsharded shape."""
    total = 0
    for name, shape in shapes:
        number = part_of(found.parts, name, shape)
        if number is not None:
            part = found.parts[number]
            total += part.state(tuple(shape)) * BYTES[part.state_dtype or dtype]
    return total


def state_rates(
    found: KeptOptimizers.Config, shapes: Shapes, dtype: str
) -> tuple[float, float | None]:
    """Return the bytes of state per element: of matrices of layers last, if they differ."""
    rates = []
    for matrices in (False, True):
        mine = [
            (name, shape)
            for name, shape in shapes.items()
            if is_matrix_of_layer(name, len(shape)) is matrices
        ]
        numel = sum(prod(shape) for _, shape in mine)
        rates.append(state_bytes(found, mine, dtype) / numel if numel else None)
    others, of_matrices = rates
    if others is None:
        others = of_matrices or 0.0
    return others, None if of_matrices == others else of_matrices
