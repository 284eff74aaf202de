"""Resolve a run and refuse errors before ranks start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atom.plan.device import DeviceDescription
from atom.plugin import Contents, PreparedTokenizer
from atom.recipe.resolved import Resolved
from atom.recipe.run import DEGREES, Run
from atom.registry.host import Host
from atom.registry.select import Selection
from atom.run_dir.resume import Resumption
from atom.titan.boot import boot
from atom.titan.compat import device

if TYPE_CHECKING:  # it imports torchtitan, which `boot` precedes
    from atom.titan.preflight.run_plan import RunPlan


@dataclass(frozen=True)
class Preflight:
    """A run with ``resolved`` filled in, and what the screen shows about it."""

    run: Run
    place: Path
    parameters: int
    seq_len: int
    steps: int
    schedule: str | None
    kernels: dict[str, tuple[str, str]]
    """operation -> (kernel, package)"""
    explanation: str = ""
    """Why the layout was chosen, if a strategy chose it."""
    warning: str = ""
    """Warnings about resources that may run out, and notes about the initial weights."""

    @property
    def resolved(self) -> Resolved:
        assert self.run.resolved is not None
        return self.run.resolved


def preflight(
    run: Run,
    selection: Selection,
    host: Host,
    place: Path,
    *,
    tokenizer: PreparedTokenizer,
    joined: int | None,
    planned: DeviceDescription | None = None,
    contents: Contents | None = None,
    resumption: Resumption | None = None,
) -> Preflight:
    """Resolve ``run``; refuse it if it cannot train.

    Args:
        run: as composed.
        selection: its components.
        host: the plugins.
        place: the path of the run folder; nothing is written there.
        tokenizer: the prepared tokenizer.
        joined: number of ranks that an outer launcher has started; None without one.
        planned: the device of another machine, for a run that will not be started here.
        contents: the dataset's description of its contents.
        resumption: the checkpoint to resume from.

    Raises:
        UserError: torchtitan or a plugin would refuse the run.
    """
    return checked(
        plan(
            run,
            selection,
            host,
            place,
            tokenizer=tokenizer,
            joined=joined,
            planned=planned,
            contents=contents,
            resumption=resumption,
        )
    )


def plan(
    run: Run,
    selection: Selection,
    host: Host,
    place: Path,
    *,
    tokenizer: PreparedTokenizer,
    joined: int | None,
    planned: DeviceDescription | None = None,
    contents: Contents | None = None,
    resumption: Resumption | None = None,
) -> RunPlan:
    """Return the plan of ``run``; the arguments are those of :func:`preflight`."""
    kind = planned.kind if planned else _device(run, joined)
    boot("cpu" if planned else kind)

    import torch

    from atom.titan.preflight.run_plan import RunPlan

    return RunPlan(
        composed=run,
        selection=selection,
        host=host,
        folder=place,
        kind=kind,
        device=planned or device.describe(kind),
        available=torch.cuda.device_count() if kind == "cuda" else device.cores(),
        tokenizer=tokenizer,
        joined=joined,
        contents=contents,
        resumption=resumption,
    )


def checked(plan: RunPlan) -> Preflight:
    """Run all checks on ``plan``; return the run that may start.

    Raises:
        UserError: the first check that refuses the run.
    """
    from atom.titan.preflight.checks import CHECKS

    for check in CHECKS:
        check(plan)
    pipelined = plan.parallelism.pipeline_parallel_degree > 1
    return Preflight(
        run=plan.assembly.run,
        place=plan.folder,
        parameters=sum(parameter.numel() for parameter in plan.model.parameters()),
        seq_len=plan.config.training.seq_len,
        steps=plan.config.training.steps,
        schedule=plan.parallelism.pipeline_parallel_schedule if pipelined else None,
        kernels={
            choice.operation: (choice.name, choice.kernel.plugin.package) for choice in plan.choices
        },
        explanation=plan.explanation,
        warning=plan.warning,
    )


def _device(run: Run, joined: int | None) -> str:
    """Return the kind of device; for ``auto``, a CPU if the layout needs more GPUs than there are.

    So a first run of 16 ranks works on a laptop with one GPU, too.
    """
    import torch

    kind = device.pick(run.device)
    if run.device == "auto" and kind == "cuda" and joined is None:
        degrees = [getattr(run.parallelism, name) or 1 for name in DEGREES]
        known = math.prod(n for n in degrees if n > 0)
        if (run.launch.ranks or known) > torch.cuda.device_count():
            return "cpu"
    return kind
