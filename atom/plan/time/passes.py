"""Predict the time of memory-bound operations: bytes over the bandwidth of memory.

Bytes are those of fused kernels (each tensor is read once and written once), times a factor for
torch.compile or for eager operations, which read and write every intermediate result.
"""

from __future__ import annotations

from atom.plan.constants import Constants
from atom.plan.device import DeviceDescription
from atom.plan.execution import (
    COMPILED,
    EAGER,
    KERNELS,
    MXFP8,
    RECIPES,
    ROWWISE,
    TENSORWISE,
    Execution,
)
from atom.plan.work import BlockWork, Product

ELEMENT = 2  # bytes of an activation

RESIDUAL = 8
"""Passes over the residual stream, forward: two norms (read, write) with the addition before each
(read, write)."""

OPERATIONS = {EAGER: 24, KERNELS: 16, COMPILED: 10}
"""Operations of a block's pass besides its products: each costs CPU time."""

ROUTING, EXPERT = 60, 12
"""Operations to route and permute tokens, and for each expert of a rank (its share of the grouped
products and of quantization)."""

OPTIMIZER = 30
"""Bytes an AdamW step moves for a parameter: gradient, weight and two moments read, weight and
moments written in float32, the weight written in bfloat16."""


def factor(execution: Execution, constants: Constants) -> float:
    """Return the bytes moved over those of fused kernels."""
    return {EAGER: constants.eager, COMPILED: constants.compiled}.get(execution.fusion, 1.0)


def seconds(moved: float, device: DeviceDescription, constants: Constants) -> float:
    """Return the seconds to move ``moved`` bytes through memory."""
    return moved / (device.memory_bandwidth * constants.memory)


def launches(block: BlockWork, ep: int, execution: Execution) -> int:
    """Return the operations that a pass of a block launches."""
    found = OPERATIONS.get(execution.fusion, 0) + 2 * len(block.products)
    experts = max((product.experts for product in block.products), default=0)
    return found + (ROUTING + EXPERT * experts // ep if experts else 0)


def block_bytes(
    block: BlockWork,
    width: int,
    tokens: float,
    tp: int,
    stream: int,
    spread: float,
    constants: Constants,
) -> float:
    """Return the bytes that a block's forward pass moves: norms, additions, rotation, activation.

    ``stream`` divides the residual stream: tp under sequence parallelism. ``spread`` divides the
    tokens that experts are sent. Backward moves twice as
    many.
    """
    residual = RESIDUAL * width / stream
    rotated = 2 * (block.attention_width + block.keys_width / 2) / tp
    hidden = block.hidden / tp
    routed = constants.routing * block.top_k * width / spread
    return tokens * ELEMENT * (residual + rotated + hidden + routed)


def quantization_bytes(
    product: Product, tokens: float, tp: int, execution: Execution, *, weights: float
) -> tuple[float, float]:
    """Return the bytes that quantization moves in forward and backward, for one product.

    Forward quantizes the inputs and the weight, backward the outputs' gradients; each is read in
    two bytes and written in one, twice where the transposed copy is needed (row-wise, MXFP8), and
    read once more for a maximum that scales need first. ``weights`` says how often in a step's
    micro-batches the weight is quantized.
    """
    if execution.products not in RECIPES or product.split == "whole":
        return 0.0, 0.0
    once = {TENSORWISE: 2 + 2 + 1, ROWWISE: 2 * (2 + 1), MXFP8: 2 + 2}.get(execution.products, 4)
    rows = tokens * product.top_k
    inputs = product.inputs / (tp if product.split == "row" else 1)
    outputs = product.outputs / (tp if product.split == "column" else 1)
    weight = product.numel / tp * weights
    return once * (rows * inputs + weight), once * rows * outputs
