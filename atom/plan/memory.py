"""Estimate the memory of one rank.

The estimate counts, with sources:

- parameters, gradients, optimizer states, each divided as ZeRO does (Rajbhandari et al., 2020,
  https://arxiv.org/abs/1910.02054, section 5) by FSDP's ranks, and by TP and EP where the model's
  own sharding splits them;
- activations of a block by checkpointing mode and what divides them (Korthikanti et al., 2022,
  https://arxiv.org/abs/2205.05198, section 4): measured on the model itself instead of their
  34 sbh, since torchtitan keeps what TP has gathered where Megatron gathers it again;
- micro-batches in flight under a pipeline schedule (Narayanan et al., 2021,
  https://arxiv.org/abs/2104.04473, section 2.2), counted in the order of torch's own schedule;
- what FSDP2 gathers and reduces (torch.distributed.fsdp.fully_shard): parameters in the compute
  dtype, gradients in the reduce dtype, on streams whose memory no other stream can use;
- weights that callbacks average, in float32, sharded like the parameters;
- logits and the loss, as ``torchtitan.components.loss`` computes them.

The peak is the worse of two moments: the loss's backward pass, and the backward pass of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil

from atom.plan.execution import COMPILED
from atom.plan.layout import BYTES, Layout
from atom.plan.model import FULL, NONE, Activations, Count, ModelDescription, Parameter, Size

FLOAT32 = 4

COMPILED_SHARE = 0.1
"""Of the allocator's reserve that remains under torch.compile."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank, at the peak of a training step.

    Attributes:
        parameters, gradients, optimizer: the rank's shards.
        gathered: parameters that FSDP holds gathered, and its gather buffers.
        reduced: gradients not yet reduced to shards.
        activations: kept from forward to backward, for all micro-batches in flight.
        working: additional memory at the peak: a block's recomputation and gradients, or logits.
        averages: averaged weights of callbacks.
        reserve: memory that the allocator holds but does not use.
    """

    parameters: int
    gradients: int
    optimizer: int
    gathered: int
    reduced: int
    activations: int
    working: int
    averages: int = 0
    reserve: int = 0

    @property
    def states(self) -> int:
        """Return parameters, gradients and optimizer states together."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return sum(int(getattr(self, field.name)) for field in fields(self))


def reserved(layout: Layout, reserve: float) -> float:
    """Return the bytes that the allocator holds for each byte in use at the peak.

    Args:
        layout: the layout.
        reserve: the same for eager operations (device-specific).

    Compiled graphs reuse their own buffers, and leave few holes: 77.0, 62.0 and 47.6 GiB published
    for 75.9, 61.9 and 48.0 in use. Published runs with tensor parallelism, whose collectives split
    the graphs, and with full checkpointing hold as much as eager ones.
    """
    how = layout.execution.fusion == COMPILED and layout.checkpointing != FULL
    tight = how and layout.tp == 1
    return 1.0 + (reserve - 1.0) * (COMPILED_SHARE if tight else 1.0)


def local_numel(parameter: Parameter, layout: Layout) -> int:
    """Return the elements of ``parameter`` on the rank that holds the most of it.

    TP shards the dimension declared for it; FSDP shards dimension 0 of the rest (dimension 1 of
    experts if there are fewer experts than ranks). Both use torch's chunks of ceil(n / ranks).
    """
    shape = list(parameter.shape)
    fsdp_dim, ranks = 0, layout.fsdp
    if parameter.expert and layout.ep > 1:
        shape[0] = ceil(shape[0] / layout.ep)
        ranks = layout.expert_fsdp
    elif parameter.tensor_dim is not None:
        shape[parameter.tensor_dim] = ceil(shape[parameter.tensor_dim] / layout.tp)
    if parameter.expert and ranks * layout.ep > parameter.shape[0]:
        fsdp_dim = 1
    if shape:
        shape[fsdp_dim] = ceil(shape[fsdp_dim] / ranks)
    numel = 1
    for size in shape:
        numel *= size
    return numel


def gathered_numel(parameter: Parameter, layout: Layout) -> int:
    """Return the elements of ``parameter`` on a rank while FSDP holds it gathered."""
    degree = 1
    if parameter.expert and layout.ep > 1:
        degree = layout.ep
    elif parameter.tensor_dim is not None:
        degree = layout.tp
    return ceil(parameter.numel / degree)


def sizes(model: ModelDescription, layout: Layout) -> dict[str, Size]:
    """Return the size of each part on a rank."""
    key = (layout.tp, layout.fsdp, layout.ep, layout.expert_fsdp)
    if key not in model.sizes:
        found: dict[str, Size] = {}
        for parameter in model.parameters:
            before = found.get(parameter.part, Size(0, 0, Count(), 0, 0, Count()))
            local = local_numel(parameter, layout)
            gathered = gathered_numel(parameter, layout) * parameter.uses
            learns = int(parameter.trained)
            is_matrix = learns and parameter.part in model.blocks and len(parameter.shape) == 2
            found[parameter.part] = Size(
                local=before.local + local,
                gathered=before.gathered + gathered,
                trained=before.trained + Count(local * learns, learns),
                # FSDP reduces a group into one buffer; the gradients are views of it.
                gradients=before.gradients + local * parameter.uses * learns,
                reduced=before.reduced + gathered * learns,
                matrices=before.matrices + (Count(local, 1) if is_matrix else Count()),
            )
        model.sizes[key] = found
    return model.sizes[key]


def parts_of(model: ModelDescription, layout: Layout, rank: int) -> dict[str, Size]:
    """Return the sizes of the parts that pipeline rank ``rank`` holds."""
    parts = {part for stage in layout.stages_of[rank] for part in layout.stages[stage]}
    return {part: size for part, size in sizes(model, layout).items() if part in parts}


def activation_bytes(activations: Activations, layout: Layout, tokens: float) -> float:
    """Return the bytes of ``activations`` on a rank with ``tokens`` tokens."""
    stream = layout.tp if layout.sequence_parallel else 1
    scattered = activations.scattered / layout.tp if layout.tp > 1 and stream > 1 else 0.0
    return tokens * (
        activations.residual / stream
        + activations.tensor / layout.tp
        + activations.gathered
        + scattered
    )


def memory(
    model: ModelDescription, layout: Layout, *, rank: int = 0, reserve: float = 1.0
) -> Memory:
    """Return the memory of a rank.

    Args:
        model: the model to train.
        layout: its layout.
        rank: the rank's number in the pipeline.
        reserve: bytes that the allocator holds for each byte in use (device-specific).
    """
    mine = parts_of(model, layout, rank)
    numel = sum(size.local for size in mine.values())
    size = BYTES[layout.parameter_dtype]
    trained = sum((part.trained for part in mine.values()), Count())
    optimizer = layout.optimizer_bytes(
        trained,
        sum((part.matrices for part in mine.values()), Count()),
    )
    gathered, waiting = _fsdp(model, layout, mine)
    kept, block, loss = _activations(model, layout, rank)
    # Without a pipeline a block's gradients are reduced at once, after those of the loss.
    at_block, at_loss = waiting + block, (waiting if layout.pp > 1 else 0) + loss
    in_block = at_block >= at_loss
    on_device = 0 if layout.offload else 1
    result = Memory(
        parameters=numel * size * on_device,
        gradients=sum(part.gradients for part in mine.values()) * size * on_device,
        optimizer=optimizer * on_device,
        gathered=gathered,
        reduced=waiting if in_block or layout.pp > 1 else 0,
        activations=kept,
        working=block if in_block else loss,
        averages=trained.numel * FLOAT32 * layout.averages * on_device,
    )
    return Memory(
        **{field.name: getattr(result, field.name) for field in fields(Memory)[:-1]},
        reserve=round(result.total * (reserved(layout, reserve) - 1)),
    )


def worst(model: ModelDescription, layout: Layout, *, reserve: float = 1.0) -> tuple[int, Memory]:
    """Return the pipeline rank that needs the most memory, and its memory."""
    each = [memory(model, layout, rank=rank, reserve=reserve) for rank in range(layout.pp)]
    rank = max(range(layout.pp), key=lambda rank: each[rank].total)
    return rank, each[rank]


def _fsdp(model: ModelDescription, layout: Layout, mine: dict[str, Size]) -> tuple[int, int]:
    """Return the bytes of gathered parameters and of gradients before they are reduced."""
    units = {part: size.gathered for part, size in mine.items()}
    block_units = sorted((units[part] for part in units if part in model.blocks), reverse=True)
    group_units = {group: sum(units.get(part, 0) for part in group) for group in model.groups}
    compute, reduce = BYTES[layout.compute_dtype], BYTES[layout.reduce_dtype]
    if layout.reshard:
        held = sum(n for group, n in group_units.items() if model.groups[group])
        # The current block, and the one that FSDP prefetches.
        held += sum(block_units[:2])
    else:
        held = sum(units.values())
    largest = max([*block_units[:1], *group_units.values()], default=0)
    buffers = largest + (block_units[0] if block_units else 0) if layout.fsdp > 1 else 0
    reduced = {part: size.reduced for part, size in mine.items()}
    if layout.pp > 1:
        # Gradients of all micro-batches accumulate before they are reduced, in the reduce dtype.
        waiting = sum(reduced.values()) * reduce
    else:
        largest = max((n for part, n in reduced.items() if part in model.blocks), default=0)
        waiting = largest * (compute + reduce)
    return (held + buffers) * compute, waiting


def _activations(model: ModelDescription, layout: Layout, rank: int) -> tuple[int, int, int]:
    """Return the bytes kept for backward, and the additional bytes of a block and of the loss."""
    mode, tokens, element = layout.checkpointing, layout.tokens, model.activation_bytes
    stream = Activations(residual=float(model.width * element))
    stream_bytes = activation_bytes(stream, layout, tokens)
    kept = worst_block = 0.0
    known: dict[int, tuple[float, float]] = {}
    for stage in layout.stages_of[rank]:
        flying = layout.in_flight[rank].get(stage, 0)
        for part in layout.stages[stage]:
            block = model.blocks.get(part)
            if block is None:
                continue
            if id(block) not in known:
                # With CP, attention sees the keys and values of the whole sequence.
                whole = tokens * layout.cp if layout.cp > 1 else 0
                keys = block.keys_width * element / layout.tp * whole
                saved = activation_bytes(block.saved[mode], layout, tokens)
                working = activation_bytes(block.working[mode], layout, tokens) + keys
                known[id(block)] = saved + (keys if mode == NONE else 0.0), working
            saved, working = known[id(block)]
            kept += flying * saved
            worst_block = max(worst_block, working - saved)
        if layout.pp > 1:
            # Send and receive each have a buffer.
            kept += 2 * flying * stream_bytes
    head = set(model.head)
    last = next((s for s in layout.stages_of[rank] if head <= set(layout.stages[s])), None)
    worst_loss = 0.0
    if last is not None:
        flying = layout.in_flight[rank].get(last, 1)
        # The final norm's input, and its output, which TP gathers for the output layer.
        final = activation_bytes(stream + Activations(gathered=stream.residual), layout, tokens)
        kept += flying * final * model.outputs
        logits = tokens * ceil(model.vocab_size / layout.tp) / layout.loss_chunks
        kept += (model.outputs - 1) * logits * element
        # Log-probabilities, their gradient, and temporaries of both, all in float32.
        worst_loss = (
            model.outputs * logits * FLOAT32 * ((4 if layout.tp > 1 else 3) + layout.z_loss)
        )
        if layout.pp > 1:
            # The schedule keeps each stage's output, and autograd the log-probabilities.
            kept += (flying - 1) * logits * (element + FLOAT32) + logits * element
    return round(kept), round(worst_block), round(worst_loss)
