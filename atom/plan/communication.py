"""Compute the bytes that one rank sends in one training step, by mesh dimension.

A ring sends (n - 1) / n of a tensor for an all-gather or a reduce-scatter, and twice that for an
all-reduce (Patarasuk and Yuan, 2009, https://doi.org/10.1016/j.jpdc.2008.09.002). The volumes:

- FSDP: parameters gathered for forward, and again for backward if they were freed, gradients
  reduced: 3 psi instead of 2 psi (Rajbhandari et al., 2020, https://arxiv.org/abs/1910.02054, 7.2);
- HSDP: an all-reduce of the gradient shards between replicas;
- TP: an all-gather or reduce-scatter of the residual stream for each column- and row-parallel group
  of layers (Korthikanti et al., 2022, https://arxiv.org/abs/2205.05198, 4.2.1), again where a block
  is recomputed;
- CP: keys and values gathered, their gradients reduced (Llama Team, 2024,
  https://arxiv.org/abs/2407.21783, 3.3.2);
- PP: the residual stream between stages, both ways;
- EP: tokens to their experts and back, both ways (Lepikhin et al., 2020,
  https://arxiv.org/abs/2006.16668, 3.2).
"""

from __future__ import annotations

from math import ceil

from atom.plan.layout import BYTES, Layout
from atom.plan.memory import parts_of
from atom.plan.model import FULL, NONE, SELECTIVE, ModelDescription

FSDP, REPLICATE, TP, CP, PP, EP = "fsdp", "dp_replicate", "tp", "cp", "pp", "ep"


def communication(model: ModelDescription, layout: Layout, *, rank: int = 0) -> dict[str, int]:
    """Return the bytes that a rank sends in one step, by dimension; zeros are left out.

    ``rank`` is the rank's number in the pipeline.
    """
    mine = parts_of(model, layout, rank)
    compute, reduce = BYTES[layout.compute_dtype], BYTES[layout.reduce_dtype]
    passes = layout.accumulation * layout.microbatches
    sent = dict.fromkeys((FSDP, REPLICATE, TP, CP, PP, EP), 0.0)

    gathered = sum(size.gathered for size in mine.values())
    gathers = 2 if layout.reshard else 1
    each = gathered * (gathers * compute + reduce) * layout.accumulation
    sent[FSDP] = _ring(layout.fsdp) * each
    shards = sum(size.local for size in mine.values())
    sent[REPLICATE] = 2 * _ring(layout.dp_replicate) * shards * reduce * layout.accumulation

    tokens, element = layout.tokens, model.activation_bytes
    again = 1 if layout.checkpointing == FULL else 0
    keys_again = 1 if layout.checkpointing in (FULL, SELECTIVE) else 0
    for part in mine.keys() & model.blocks.keys():
        block = model.blocks[part]
        whole = block.saved[NONE].gathered + block.saved[SELECTIVE].scattered
        # Without sequence parallelism: an all-reduce for each reduce-scatter, and no all-gather.
        factor = 1 if layout.sequence_parallel else 2
        tensors = whole if layout.sequence_parallel else block.saved[SELECTIVE].scattered
        sent[TP] += _ring(layout.tp) * factor * tensors * tokens * (2 + again) * passes
        keys = block.keys_width * element / layout.tp * tokens * layout.cp
        sent[CP] += _ring(layout.cp) * keys * (2 + keys_again) * passes
        routed = model.routed.get(part, 0.0) * tokens / layout.tp
        sent[EP] += _ring(layout.ep) * 2 * routed * (2 + again) * passes
    if layout.pp > 1:
        stream = model.width * element * tokens
        stream /= layout.tp if layout.sequence_parallel else 1
        last = len(layout.stages) - 1
        for stage in layout.stages_of[rank]:
            directions = (stage < last) + (stage > 0)
            sent[PP] += directions * stream * passes
    return {dimension: ceil(size) for dimension, size in sent.items() if size}


def _ring(ranks: int) -> float:
    return (ranks - 1) / ranks


def extent(dimension: str, layout: Layout) -> int:
    """Return the number of consecutive ranks that a group of ``dimension`` spans.

    The mesh is pp x dp_replicate x dp_shard x cp x tp, tp innermost.
    """
    reach = {
        TP: layout.tp,
        CP: layout.tp * layout.cp,
        EP: layout.ep,
        FSDP: layout.tp * layout.fsdp,
        REPLICATE: layout.tp * layout.fsdp * layout.dp_replicate,
        PP: layout.ranks,
    }
    return reach[dimension]
