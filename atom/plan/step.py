"""Estimate the time of a step: accurate enough to rank layouts, not to predict run times."""

from __future__ import annotations

from dataclasses import dataclass

from atom.plan.communication import CP, EP, FSDP, PP, REPLICATE, TP, communication, extent
from atom.plan.device import DeviceDescription
from atom.plan.layout import Layout
from atom.plan.model import FULL, SELECTIVE, ModelDescription

EFFICIENCY = 0.5
"""Fraction of the peak FLOP/s while computing.

torchtitan's own H100 runs reach 0.33 to 0.39 of a whole step, communication included
(``benchmarks/llama3_h100_202412_torchtitan.md`` in its repository).
"""

LINK_EFFICIENCY = 0.7
"""Fraction of a link's bandwidth that large NCCL collectives reach."""

OVERLAPPED = (FSDP, REPLICATE)
"""Dimensions that overlap communication with computation; the others block."""

LATENCY = 5e-6
"""Seconds of one hop of a ring between nodes.

A collective of n ranks has n - 1 hops (Hockney's model, as in Thakur et al., 2005,
https://doi.org/10.1177/1094342005051521); NCCL reports 5 to 20 microseconds, tree algorithms need
fewer hops.
"""

RECOMPUTED = {FULL: 1.0, SELECTIVE: 0.5}
"""Fraction of the forward pass recomputed in backward; SAC repeats every other product."""


_COLLECTIVES = 3
"""Collectives per block and local batch: two gathers, one reduction."""


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one step: computing, waiting for communication, idle in the pipeline."""

    compute: float
    exposed: float
    idle: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed + self.idle


def flops_per_token(model: ModelDescription, seq_len: int, mode: str) -> float:
    """Return the FLOPs of one token in a step: 6 per matrix-product parameter, plus attention.

    As in Narayanan et al. (2021), section 5.1: backward costs twice forward. Attention is causal,
    so half of its scores are computed. Recomputation under ``mode`` is added.
    """
    head = 2.0 * model.width * model.vocab_size
    blocks = sum(
        block.flops + 2.0 * block.attention_width * seq_len for block in model.blocks.values()
    )
    return 3.0 * head + (3.0 + RECOMPUTED.get(mode, 0.0)) * blocks


def step(model: ModelDescription, layout: Layout, device: DeviceDescription) -> Step:
    """Return the time of one step on ``device``."""
    tokens = layout.dp * layout.local_batch_size * layout.accumulation * layout.seq_len
    flops = flops_per_token(model, layout.seq_len, layout.checkpointing) * tokens / layout.ranks
    compute = flops / (device.peak(layout.compute_dtype) * EFFICIENCY)
    hidden = exposed = 0.0
    middle = layout.pp // 2
    for dimension, size in communication(model, layout, rank=middle).items():
        inside = extent(dimension, layout) <= device.devices_per_node
        bandwidth = device.node_bandwidth if inside else device.network_bandwidth
        seconds = size / (bandwidth * LINK_EFFICIENCY) if bandwidth else 0.0
        if dimension in OVERLAPPED:
            ranks = layout.fsdp if dimension == FSDP else layout.dp_replicate
            collectives = len(model.blocks) / layout.pp * layout.accumulation * _COLLECTIVES
            hidden += seconds + (0 if inside else collectives * (ranks - 1) * LATENCY)
        else:
            assert dimension in (TP, CP, PP, EP)
            exposed += seconds
    exposed += max(hidden - compute, 0.0)
    idle = (compute + exposed) * layout.bubble / (1.0 - layout.bubble)
    return Step(compute, exposed, idle)
