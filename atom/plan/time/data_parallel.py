"""Predict what data parallelism's collectives add to a step: what computation does not hide.

FSDP gathers a block while the one before computes, and reduces its gradients while the next one
does. So a block's forward takes max(f + c g, g) for a computation f and a gather g, with c the
contention: a collective takes multiprocessors and memory bandwidth from what runs beside it. Its
backward takes the same of b and the gather (if freed after forward) and the reduction. The first
gather and the last reduction are exposed.

With a pipeline, or optimizer sharding alone (ZeRO-1, as in Megatron's distributed optimizer),
parameters are gathered and gradients reduced once a step, beside the first micro-batch's forward
and the last one's backward.
"""

from __future__ import annotations

from dataclasses import dataclass

from atom.plan.constants import Constants
from atom.plan.device import DeviceDescription
from atom.plan.execution import ZERO1
from atom.plan.layout import BYTES, Layout
from atom.plan.time import collectives, passes
from atom.plan.time.stages import Stage


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step: exposed by sharding, exposed by replication."""

    fsdp: float
    replicate: float


def sharded(stage: Stage, layout: Layout, device: DeviceDescription, constants: Constants) -> Cost:
    """Return what data parallelism adds to a step of the rank that holds ``stage``."""
    gather, reduce, replicas = _collectives(stage, layout, device, constants)
    forward, backward = stage.forward.seconds, stage.backward.seconds
    if layout.pp > 1 or layout.execution.sharding == ZERO1:
        if not layout.execution.overlaps_dp:
            return Cost(gather + reduce, replicas)
        # Chunks of an interleaved schedule begin and end one after another, each with as many
        # micro-batches as there are ranks.
        chunks = len(layout.stages) // layout.pp
        spread, pieces = (layout.pp, chunks) if chunks > 1 else (1, stage.blocks)
        return Cost(
            _beside(spread * forward, gather, pieces, constants)
            + _beside(spread * backward, reduce, pieces, constants),
            max(replicas - max(backward - reduce, 0.0), 0.0),
        )
    back = reduce + (gather if layout.reshard else 0.0)
    once = _beside(forward, gather, stage.blocks, constants)
    twice = _beside(backward, back, stage.blocks, constants)
    all_of_it = _beside(backward, back + replicas, stage.blocks, constants)
    again = layout.accumulation - 1
    first = once + twice
    other = twice + (once if layout.reshard else 0.0)
    return Cost(first + again * other, (all_of_it - twice) * layout.accumulation)


def _beside(compute: float, sent: float, pieces: int, constants: Constants) -> float:
    """Return the seconds that collectives of ``sent`` add to ``compute``, piece by piece."""
    if not sent:
        return 0.0
    slowed = compute + constants.contention * min(sent, compute)
    return max(slowed, sent) - compute + sent / max(pieces, 1)


def _collectives(
    stage: Stage, layout: Layout, device: DeviceDescription, constants: Constants
) -> tuple[float, float, float]:
    """Return the seconds to gather and reduce a stage, and to reduce it between replicas."""
    how, element = layout.execution, BYTES[layout.compute_dtype]
    element = 1 if how.float8_gather else element
    reduce_element = BYTES[layout.reduce_dtype]
    ranks = layout.fsdp * (layout.dp_replicate if how.sharding == ZERO1 else 1)
    blocks = max(stage.blocks, 1)
    dense, experts = stage.numel / blocks, stage.experts / blocks

    def each(size: float) -> float:
        args = device, constants
        stride = layout.expert_split if layout.ep > 1 else layout.tp
        of_experts = ranks * layout.tp // layout.expert_split
        return collectives.gather(dense * size, ranks, layout.tp, *args) + collectives.gather(
            experts * size, max(of_experts, 1), stride, *args
        )

    replicas = 0.0
    if how.sharding != ZERO1 and layout.dp_replicate > 1:
        shard = (dense + experts) / layout.fsdp * reduce_element
        stride = layout.tp * layout.fsdp
        replicas = collectives.all_reduce(shard, layout.dp_replicate, stride, device, constants)
    return blocks * each(element), blocks * each(reduce_element), blocks * replicas


def optimizer(
    stage: Stage, layout: Layout, device: DeviceDescription, constants: Constants
) -> float:
    """Return the seconds of the optimizer's step, and of clipping, which reads gradients again."""
    shards = layout.fsdp * (layout.dp_replicate if layout.execution.sharding == ZERO1 else 1)
    local = (stage.numel + stage.experts) / shards
    moved = local * (passes.OPTIMIZER + 8)
    return passes.seconds(moved * passes.factor(layout.execution, constants), device, constants)
