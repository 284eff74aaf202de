"""Compare the peak of memory of published rows with estimates, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from plan_parts.jobs import Job, split

from atom.plan.device import GIB
from atom.plan.execution import FSDP
from atom.plan.layout import Layout
from atom.plan.memory import worst
from atom.plan.pipeline import in_flight
from atom.plan.transformer import described


@dataclass(frozen=True)
class Peak:
    """GiB of a row: published, and estimated."""

    job: Job
    published: float
    estimated: float

    @property
    def error(self) -> float:
        return self.estimated / self.published - 1


def scored(jobs: Sequence[Job]) -> list[Peak]:
    """Return the rows whose memory was published and whose sharding is FSDP."""
    return [
        Peak(job, job.gib, estimated(job))
        for job in jobs
        if job.gib and job.layout.execution.sharding == FSDP and not job.dims.get("experts")
    ]


def estimated(job: Job) -> float:
    """Return the estimate of a row, in GiB."""
    model = described(job.dims)
    # In these runs FSDP kept the embedding, the last norm and the output layer in one group,
    # gathered for the whole step.
    model = replace(model, groups={("tok_embeddings", "norm", "lm_head"): True})
    layout = job.layout
    order = layout.order
    laid_out: Layout = replace(
        layout,
        stages=split(list(model.blocks), len(layout.stages)),
        in_flight=tuple(in_flight(each) for each in order.order) if order else ({0: 1},),
    )
    return worst(model, laid_out, reserve=job.device.reserve)[1].total / GIB
