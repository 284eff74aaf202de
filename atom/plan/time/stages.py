"""Predict the time of each pipeline stage for one micro-batch, with its output layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from atom.plan.constants import Constants
from atom.plan.device import DeviceDescription
from atom.plan.layout import Layout
from atom.plan.time import passes
from atom.plan.time.block import Parts, block_time
from atom.plan.time.products import product
from atom.plan.work import BlockWork, ModelWork


@dataclass(frozen=True)
class Stage:
    """One stage: times of a micro-batch, and its weights before data parallelism shards them.

    ``blocks`` counts its layers, ``numel`` elements of its dense weights on a TP rank, ``experts``
    those of its experts on a rank.
    """

    forward: Parts
    backward: Parts
    blocks: int
    numel: float
    experts: float

    @property
    def seconds(self) -> tuple[float, float]:
        return self.forward.seconds, self.backward.seconds


def stages(
    work: ModelWork, layout: Layout, device: DeviceDescription, constants: Constants
) -> list[Stage]:
    """Return the stages of ``layout``."""
    known: dict[BlockWork, tuple[Parts, Parts]] = {}
    found = []
    head = "lm_head" if any("lm_head" in parts for parts in layout.stages) else ""
    for number, parts in enumerate(layout.stages):
        forward = backward = Parts()
        numel = experts = 0.0
        counts = Counter(work.blocks[part] for part in parts if part in work.blocks)
        for block, times in counts.items():
            if block not in known:
                known[block] = block_time(block, work.width, layout, device, constants)
            forward += known[block][0] * times
            backward += known[block][1] * times
            numel += block.dense / layout.tp * times
            experts += block.expert / layout.expert_split * times
        vocabulary = work.width * work.vocab_size / layout.tp
        last = head in parts if head else number == len(layout.stages) - 1
        if last:
            once, twice = _head(work, layout, device, constants)
            forward, backward = forward + once * work.outputs, backward + twice * work.outputs
            numel += vocabulary
        if number == 0 and not (work.tied and last):
            numel += vocabulary
        found.append(Stage(forward, backward, sum(counts.values()), numel, experts))
    return found


def _head(
    work: ModelWork, layout: Layout, device: DeviceDescription, constants: Constants
) -> tuple[Parts, Parts]:
    """Return the times of the output layer and the loss."""
    tokens, columns = round(layout.tokens), work.vocab_size // layout.tp
    args = 1, layout.execution.unquantized, device, constants
    logits = product(tokens, columns, work.width, *args)
    back = product(tokens, work.width, columns, *args) + product(columns, work.width, tokens, *args)
    moved = tokens * columns * constants.loss / 2 * passes.factor(layout.execution, constants)
    memory = passes.seconds(moved, device, constants)
    return Parts(products=logits, memory=memory), Parts(products=back, memory=memory)
