"""Predict the time of attention.

A fused kernel computes 4 w s / 2 FLOPs a token in its forward pass (w: width of the queries, s: the
sequence, halved by causality) and 2.5 times that in backward, which repeats the scores (Dao, 2023,
https://arxiv.org/abs/2307.08691). Its rate is a fraction of the peak by kernel and GPU, less on
short sequences, s / (s + 512), and on heads narrower than 128.

Without a fused kernel, all scores are computed and pass through memory: about 14 bytes a score
forward and 20 backward (scale, mask, softmax, dropout in half precision).
"""

from __future__ import annotations

from atom.plan.constants import Constants
from atom.plan.device import DeviceDescription
from atom.plan.execution import UNFUSED
from atom.plan.layout import Layout
from atom.plan.time.products import clock, generation, rate
from atom.plan.work import BlockWork

SHORT = 512
NARROW = 0.25
"""Exponent of a head's width below 128 in an attention kernel's rate: 0.84 at 64."""

SCORE_FORWARD, SCORE_BACKWARD = 14.0, 20.0
BACKWARD_FLOPS = 2.5


def attention(
    block: BlockWork,
    tokens: float,
    layout: Layout,
    device: DeviceDescription,
    constants: Constants,
) -> tuple[float, float]:
    """Return the seconds of forward and backward for ``tokens`` queries of a rank."""
    seq_len, kernel = layout.seq_len, layout.execution.attention
    dtype = layout.execution.unquantized
    width = block.attention_width / layout.tp
    if not width:
        return 0.0, 0.0
    if kernel == UNFUSED:
        scores = tokens * seq_len * width / block.head_width
        flops = 4.0 * tokens * width * seq_len
        speed = constants.unfused * rate(device, dtype, constants)
        bandwidth = device.memory_bandwidth * constants.memory
        forward = flops / speed + scores * SCORE_FORWARD / bandwidth
        return forward, 2 * flops / speed + scores * SCORE_BACKWARD / bandwidth
    seen = seq_len / 2
    if block.window and block.window < seq_len:
        seen = block.window
    flops = 4.0 * tokens * width * seen
    fraction = _fraction(kernel, device, constants)
    fraction *= seen / (seen + SHORT / 2)
    fraction *= min(block.head_width / 128, 1.0) ** NARROW
    fraction *= constants.ring if layout.cp > 1 else 1.0
    speed = device.peak(dtype) * clock(device, constants) * fraction
    return flops / speed, BACKWARD_FLOPS * flops / (speed * constants.attention_backward)


def _fraction(kernel: str, device: DeviceDescription, constants: Constants) -> float:
    name = generation(device) or "a100"
    known = f"{kernel}_{name}"
    if not hasattr(constants, known):
        # A kernel that was never measured on this GPU: the nearest that was.
        known = {"h100": "flash2_h100", "b200": "cudnn_b200"}.get(name, "flash2_a100")
    return float(getattr(constants, known))
