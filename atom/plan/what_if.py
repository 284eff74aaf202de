"""Estimate layouts that ATOM does not run, to compare with other frameworks."""

from __future__ import annotations

from dataclasses import replace

from atom.plan.communication import communication
from atom.plan.device import DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.execution import ZERO1
from atom.plan.memory import memory, reserved, sizes
from atom.plan.model import ModelDescription
from atom.plan.time.step import step
from atom.plan.work import work

WEIGHT, GRADIENT, STATES = 2, 4, 12
"""Bytes a parameter of Megatron's distributed optimizer: a bfloat16 weight and a float32 gradient
on every rank; a float32 weight and two moments, which data-parallel ranks share."""


def zero1(found: Estimate, model: ModelDescription, device: DeviceDescription) -> Estimate:
    """Return the estimate of the same degrees with only the optimizer's states sharded (ZeRO-1)."""
    given = found.layout
    execution = replace(given.execution, sharding=ZERO1)
    layout = replace(given, dp_replicate=given.dp, dp_shard=1, reshard=False, execution=execution)
    plain = memory(model, layout, rank=found.rank)
    parts = {part for stage in layout.stages_of[found.rank] for part in layout.stages[stage]}
    held = sum(size.gathered for part, size in sizes(model, layout).items() if part in parts)
    needed = replace(
        plain,
        parameters=held * WEIGHT,
        gradients=held * GRADIENT,
        optimizer=held * STATES // (layout.dp * layout.cp),
        gathered=0,
        reduced=0,
    )
    reserve = round(needed.total * (reserved(layout, device.reserve) - 1))
    return replace(
        found,
        layout=layout,
        memory=replace(needed, reserve=reserve),
        sent=communication(model, layout, rank=found.rank),
        step=step(work(model), layout, device),
    )
