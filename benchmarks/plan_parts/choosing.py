"""Choose layouts for published rows as ``parallelism=auto`` does, without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from plan_parts.jobs import Job, split

from atom.errors import UserError
from atom.plan.candidates import INTERLEAVED, Candidate, Space
from atom.plan.device import DeviceDescription
from atom.plan.estimate import Estimate, estimate
from atom.plan.execution import FSDP
from atom.plan.layout import Layout
from atom.plan.memory import worst
from atom.plan.model import ModelDescription
from atom.plan.pipeline import in_flight
from atom.plan.search import HEADROOM, Found, Search
from atom.plan.time.orders import interleaved
from atom.plan.time.step import step
from atom.plan.transformer import described
from atom.plan.work import ModelWork, work


@dataclass(frozen=True)
class Compared:
    """A published layout and the best one found, both as ATOM runs them.

    ``seconds`` is None if the published layout is too large by the estimate, ``best`` if nothing
    fits.
    """

    job: Job
    seconds: float | None
    found: Found

    @property
    def best(self) -> float | None:
        if not self.found.fitting:
            return None
        estimate = self.found.fitting[0].estimate
        assert estimate is not None
        return estimate.step.seconds


def compare(job: Job) -> Compared:
    """Search the layouts of ``job``'s model, GPUs and batch."""
    model = described(job.dims)
    layout = sharded(job.layout, model)
    needed = worst(model, layout, reserve=job.device.reserve)[1].total
    seconds = None
    if needed <= HEADROOM * job.device.memory:
        seconds = step(work(model), layout, job.device).seconds
    found = searched(
        model, layout, job.device, ranks=job.gpus, experts=int(job.dims.get("experts") or 0)
    )
    return Compared(job, seconds, found)


def sharded(layout: Layout, model: ModelDescription) -> Layout:
    """Return a published layout as ATOM runs it: with FSDP instead of a sharded optimizer."""
    execution = replace(layout.execution, sharding=FSDP)
    whole = layout.execution.sharding != FSDP
    order = layout.order
    return replace(
        layout,
        dp_replicate=1 if whole else layout.dp_replicate,
        dp_shard=layout.dp if whole else layout.dp_shard,
        reshard=layout.pp == 1 if whole else layout.reshard,
        stages=split(list(model.blocks), len(layout.stages)),
        in_flight=tuple(in_flight(a) for a in order.order) if order else ({0: 1},),
        execution=execution,
    )


def searched(
    model: ModelDescription,
    template: Layout,
    device: DeviceDescription,
    *,
    ranks: int,
    experts: int = 0,
    wanted: int = 1,
) -> Found:
    """Search the layouts of ``ranks`` devices; ``template`` has batch and precision."""
    described_work = work(model)

    def exact(candidate: Candidate) -> Estimate:
        return estimated(candidate, template, model, described_work, device)

    space = Space(
        ranks=ranks,
        batch=template.dp * template.local_batch_size * template.accumulation,
        seq_len=template.seq_len,
        layers=len(model.blocks),
        node=device.devices_per_node,
        experts=experts,
    )
    return Search(space, template, model, device, exact).best(wanted)


def estimated(
    candidate: Candidate,
    template: Layout,
    model: ModelDescription,
    found: ModelWork,
    device: DeviceDescription,
) -> Estimate:
    shape, chunks = candidate.shape, candidate.chunks
    layout = candidate.layout(template)
    if shape.pp > 1:
        if candidate.schedule == INTERLEAVED and candidate.microbatches % shape.pp:
            raise UserError("micro-batches are no multiple of the pipeline's ranks")
        order = interleaved(shape.pp, chunks, candidate.microbatches)
        layout = replace(
            layout,
            stages=split(list(model.blocks), shape.pp * chunks),
            stages_of=tuple(
                tuple(range(rank, shape.pp * chunks, shape.pp)) for rank in range(shape.pp)
            ),
            in_flight=tuple(in_flight(actions) for actions in order.order),
            order=order,
        )
    return estimate(model, layout, device, found)
