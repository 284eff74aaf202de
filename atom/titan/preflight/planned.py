"""Estimate a run of any size without building a rank, for ``atom plan``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atom.plan.device import DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.model import ModelDescription
from atom.plugin import Contents, PreparedTokenizer
from atom.recipe import batches
from atom.recipe.batches import Batches
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import Selection
from atom.titan.boot import boot
from atom.titan.preflight import preflight


@dataclass(frozen=True)
class Planned:
    """A run that was checked, and its estimate.

    Attributes:
        estimate: of its largest batch.
        batches: the sequences of each step.
        at: returns the estimate of a step of so many sequences.
    """

    estimate: Estimate
    batches: Batches
    at: Callable[[int], Estimate]
    model: ModelDescription
    device: DeviceDescription
    steps: int
    explanation: str


def planned(
    run: Run,
    selection: Selection,
    host: Host,
    *,
    tokenizer: PreparedTokenizer,
    contents: Contents | None,
    changed: Callable[[DeviceDescription, int], DeviceDescription],
) -> Planned:
    """Estimate ``run``.

    Args:
        run: as composed.
        selection: its components.
        host: the plugins.
        tokenizer: the prepared tokenizer.
        contents: the dataset's description of its contents.
        changed: returns the device with another network, for a number of ranks.

    Raises:
        UserError: the run would be refused; not if it does not fit in memory.
    """
    boot("cpu")
    from atom.titan.planning import planning

    ranks = run.world_size or run.launch.ranks or 1
    plan = preflight.plan(
        run,
        selection,
        host,
        Path("plan"),  # the place of the run folder; nothing is written
        tokenizer=tokenizer,
        joined=ranks,
        planned=changed(planning.described(run), ranks),
        contents=contents,
    )
    ready = preflight.checked(plan)
    return Planned(
        estimate=plan.estimate,
        batches=batches.batches(ready.run, plan.global_batch_size),
        at=plan.estimate_at,
        model=plan.description,
        device=plan.device,
        steps=ready.steps,
        explanation=ready.explanation,
    )
