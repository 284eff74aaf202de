"""A plugin, for tests alone, that damages what one rank computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

_DECLARED = """
from atom.plugin import Parallelism, hookimpl

ATOM_INTERFACE = 1

@hookimpl
def atom_parallelisms():
    yield Parallelism(
        name="damaged", summary="a mesh on which one rank errs", build="atom_damaged.build:mesh"
    )
"""

_BUILD = """
import os
import signal
from dataclasses import replace

import torch
import torch.distributed as dist
from atom_parallelism.build import mesh as whole

RANK = int(os.environ["DAMAGED_RANK"])
STEPS = [int(step) for step in os.environ["DAMAGED_STEPS"].split(",")]
FACTOR = float(os.environ.get("DAMAGED_FACTOR", "nan"))
FLIP = "DAMAGED_BIT" in os.environ
RAISE = "DAMAGED_RAISE" in os.environ
SIGNAL = int(os.environ.get("DAMAGED_SIGNAL", "0"))

def mesh(config, context):
    strategy = whole(config, context)

    def parallelize(model, **arguments):
        model = strategy.parallelize_fn(model, **arguments)
        calls = 0

        def damage(module, inputs, output):
            nonlocal calls
            calls += 1
            if calls == SIGNAL:
                os.kill(os.getpid(), signal.SIGUSR1)
            if calls not in STEPS or dist.get_rank() != RANK:
                return
            if RAISE:
                raise ValueError(f"torn in forward pass {calls}")
            if FLIP:
                weight = next(module.parameters())
                weight = getattr(weight, "_local_tensor", weight)
                weight.data.view(-1).view(torch.int32)[3] ^= 1
            else:
                output.register_hook(lambda gradient: gradient * FACTOR)

        model.register_forward_hook(damage)
        return model

    return replace(strategy, parallelize_fn=parallelize)
"""


@pytest.fixture
def damaged(start: Callable, environment: dict[str, str], install: Callable) -> Callable:
    """Start a run of two ranks of which one multiplies the gradient that comes back from the loss
    by ``factor`` in its n-th forward passes, or flips a bit of a weight, or raises an exception. In
    the forward pass ``asked_in``, ranks are sent what asks for an early end."""
    site = install("atom-damaged", {"__init__.py": _DECLARED, "build.py": _BUILD})

    def run(
        *overrides: str,
        forwards: tuple[int, ...],
        layout: str = "fsdp",
        factor: float | None = None,
        flip: bool = False,
        raises: bool = False,
        asked_in: int = 0,
        rank: int = 1,
    ):
        extra = {
            "PYTHONPATH": str(site),
            "DAMAGED_RANK": str(rank),
            "DAMAGED_SIGNAL": str(asked_in),
            "DAMAGED_STEPS": ",".join(map(str, forwards)),
        }
        if factor is not None:
            extra["DAMAGED_FACTOR"] = str(factor)
        if flip:
            extra["DAMAGED_BIT"] = "1"
        if raises:
            extra["DAMAGED_RAISE"] = "1"
        overrides = (
            f"parallelism={layout}",
            "parallelism.name=damaged",
            "launch.ranks=2",
            *overrides,
        )
        return start("run", *overrides, env=environment | extra)

    return run
