"""Predict the time of one block on one rank: forward, backward, and communication inside it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from atom.plan.constants import Constants
from atom.plan.device import DeviceDescription
from atom.plan.layout import Layout
from atom.plan.model import FULL, SELECTIVE
from atom.plan.time import collectives, passes
from atom.plan.time.attention import attention
from atom.plan.time.products import product
from atom.plan.work import COLUMN, ROW, BlockWork, Product


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds by kind; ``tp``, ``cp``, ``ep`` are communication that nothing hides."""

    products: float = 0.0
    attention: float = 0.0
    memory: float = 0.0
    launches: float = 0.0
    tp: float = 0.0
    cp: float = 0.0
    ep: float = 0.0

    def __add__(self, other: Parts) -> Parts:
        return Parts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Parts)))

    def __mul__(self, times: float) -> Parts:
        return Parts(*(getattr(self, f.name) * times for f in fields(Parts)))

    @property
    def seconds(self) -> float:
        return float(sum(getattr(self, f.name) for f in fields(Parts)))


def block_time(
    block: BlockWork, width: int, layout: Layout, device: DeviceDescription, constants: Constants
) -> tuple[Parts, Parts]:
    """Return the times of a block's forward and backward pass for one micro-batch.

    Backward includes what activation checkpointing repeats.
    """
    tokens, how = layout.tokens, layout.execution
    forward_products = backward_products = 0.0
    moved_forward = moved_backward = 0.0
    weights = 1.0 / layout.passes if how.cached_weights else 1.0
    for each in block.products:
        once, twice = _product(each, tokens, layout, device, constants)
        forward_products += once
        backward_products += twice
        first, second = passes.quantization_bytes(each, tokens, layout.tp, how, weights=weights)
        moved_forward += first * constants.quantization
        moved_backward += second * constants.quantization
    stream = layout.tp if layout.sequence_parallel else 1
    spread = layout.tp / layout.expert_tp
    plain = passes.block_bytes(block, width, tokens, layout.tp, stream, spread, constants)
    plain *= passes.factor(how, constants)
    score, score_back = attention(block, tokens, layout, device, constants)
    inside = _cp(block, layout, device, constants)
    tp_each = _tp(width, layout, device, constants)
    # Ranks that split an expert gather its tokens, each as often as it was routed.
    routed = 2 * tp_each * (block.top_k - 1) if block.top_k and layout.expert_tp > 1 else 0.0
    ep_each = _ep(block, width, layout, device, constants)
    hidden = constants.overlap if how.async_tp else 0.0
    forward = Parts(
        products=forward_products,
        attention=score,
        memory=passes.seconds(moved_forward + plain, device, constants),
        tp=max(4 * tp_each - hidden * min(forward_products, 4 * tp_each), 0.0) + routed,
        cp=max(inside - score, 0.0),
        ep=2 * ep_each,
    )
    # Sequence parallelism that gathers inputs again hides that behind the inputs' gradients.
    collectives_back = 4 * tp_each + (2 * tp_each if how.regathers and stream > 1 else 0)
    back_hidden = hidden * min(backward_products, collectives_back)
    backward = Parts(
        products=backward_products,
        attention=score_back,
        memory=passes.seconds(moved_backward + 2 * plain, device, constants),
        tp=max(collectives_back - back_hidden, 0.0) + routed,
        cp=max(2 * inside - score_back, 0.0),
        ep=2 * ep_each,
    )
    # A CPU computes an operation before it begins the next.
    hides = device.kind != "cpu"
    forward, backward = (
        _launched(part, block, layout, constants, hides=hides) for part in (forward, backward)
    )
    return forward, backward + _again(forward, layout, constants)


def _again(forward: Parts, layout: Layout, constants: Constants) -> Parts:
    """Return what checkpointing repeats of a forward pass."""
    if layout.checkpointing == FULL:
        return forward
    if layout.checkpointing != SELECTIVE:
        return Parts()
    if not layout.execution.saves_products:
        return Parts(attention=forward.attention)
    # Kept: every other product, attention, what a reduce-scatter gave.
    return Parts(
        products=forward.products * constants.recompute,
        memory=forward.memory,
        tp=forward.tp / 2,
    )


def _launched(
    part: Parts, block: BlockWork, layout: Layout, constants: Constants, *, hides: bool
) -> Parts:
    """Add the time that a block's launches take beyond the GPU's own."""
    launches = passes.launches(block, layout.ep, layout.execution) * constants.launch
    return part + Parts(launches=max(launches - (part.seconds if hides else 0.0), 0.0))


def _product(
    each: Product, tokens: float, layout: Layout, device: DeviceDescription, constants: Constants
) -> tuple[float, float]:
    """Return the times of a product forward, and of its two in backward."""
    tp, precision = layout.tp, layout.execution.products
    rows, groups = round(tokens), 1
    inputs, outputs = each.inputs, each.outputs
    if each.experts:
        groups = max(each.experts // layout.ep, 1)
        tp = layout.expert_tp
        rows = max(round(tokens * each.top_k * tp / layout.tp / groups), 1)
    if each.split == COLUMN:
        outputs = max(outputs // tp, 1)
    elif each.split == ROW:
        inputs = max(inputs // tp, 1)
    else:
        # Small products that TP does not split keep their precision.
        precision = layout.execution.unquantized
    args = groups, precision, device, constants
    forward = product(rows, outputs, inputs, *args)
    return forward, product(rows, inputs, outputs, *args) + product(outputs, inputs, rows, *args)


def _tp(width: int, layout: Layout, device: DeviceDescription, constants: Constants) -> float:
    """Return the seconds of one all-gather or reduce-scatter of the residual stream.

    A block's forward pass has four. Without sequence parallelism it has two all-reduces instead.
    """
    size = layout.tokens * width * passes.ELEMENT
    if layout.execution.float8_gather:
        # Gathers are of float8, reduce-scatters are not.
        size *= 0.75
    return collectives.gather(size, layout.tp, 1, device, constants)


def _cp(block: BlockWork, layout: Layout, device: DeviceDescription, constants: Constants) -> float:
    """Return the seconds of context parallelism's ring of keys and values, one way."""
    keys = layout.tokens * layout.cp * block.keys_width / layout.tp * passes.ELEMENT
    return collectives.gather(keys, layout.cp, layout.tp, device, constants)


def _ep(
    block: BlockWork, width: int, layout: Layout, device: DeviceDescription, constants: Constants
) -> float:
    """Return the seconds to send tokens to their experts, one way."""
    stride = layout.expert_stride
    sent = layout.tokens * width * passes.ELEMENT
    if layout.sequence_parallel:
        sent /= layout.tp
    seconds = collectives.all_to_all(
        sent, block.top_k, layout.ep, stride, device, constants,
        once=layout.execution.sends_once,
    )  # fmt: skip
    return seconds * (1 - constants.overlap) if layout.execution.overlaps_ep else seconds
