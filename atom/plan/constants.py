"""Define the constants of the time model, with their sources.

A constant with a published measurement has it as its prior. ``benchmarks/plan_accuracy.py --fit``
adjusts those in ``PRIORS`` to all published rows together, with the prior's spread as a penalty. No
constant belongs to a model, a row or a source.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Constants of the time model; seconds, bytes and fractions.

    Attributes:
        sustained_a100, sustained_h100, sustained_b200: clock of a long run over that of a short
            measurement, by generation. Products on an H100 fall from 798 to 720 TFLOP/s as they
            grow: the power limit.
        power: exponent of the clock in (power cap / rated power). Dynamic power grows with about
            the third power of the clock (0.33); static power raises the exponent.
        memory: fraction of the memory's bandwidth that long kernels reach.
        eager, compiled: bytes moved by memory-bound operations over those of fused kernels.
        recompute: fraction of a block's products that torchtitan's selective checkpointing repeats
            (it keeps every other one).
        flash1_a100 … cudnn_b200: fraction of the peak that an attention kernel's forward reaches.
        attention_backward: efficiency of its backward over that of its forward.
        ring: efficiency of attention in context parallelism's ring over that of one kernel: smaller
            pieces, and results merged in float32.
        unfused: efficiency of attention's own products without a fused kernel.
        network: fraction of a NIC's bandwidth (B200 with EFA: 37 of 50 GB/s; DGX H100: 380 of 400).
        contention: slowdown of computation while a collective runs, as a fraction of the
            collective's time (it takes multiprocessors and memory bandwidth).
        overlap: fraction of tensor parallelism's communication that split products hide.
        straggler: standard deviation of a rank's speed over its mean.
        launch: seconds of CPU time to launch an operation.
        step: seconds of a step that nothing hides: data, clipping, synchronization.
        quantization: bytes moved by quantization over the fewest possible.
        rowwise: efficiency of products with row-wise scales over tensor-wise.
        delayed: efficiency of float8 products of a whole layer over the best one.
        mxfp8: the same of products with a scale for 32 elements.
        loss: bytes moved per logit, forward and backward, by fused kernels.
        routing: passes over routed tokens to permute them, forward.
        grouped: efficiency of experts' products over the same products of dense layers.
    """

    sustained_a100: float = 0.95
    sustained_h100: float = 0.87
    sustained_b200: float = 0.87
    power: float = 0.5
    memory: float = 0.85
    eager: float = 2.0
    compiled: float = 1.1
    recompute: float = 0.5
    flash1_a100: float = 0.40
    flash1_h100: float = 0.22
    flash2_a100: float = 0.60
    flash2_h100: float = 0.40
    cudnn_h100: float = 0.60
    cudnn_b200: float = 0.55
    attention_backward: float = 0.80
    ring: float = 0.85
    unfused: float = 0.7
    network: float = 0.80
    contention: float = 0.20
    overlap: float = 0.6
    straggler: float = 0.005
    launch: float = 8e-6
    step: float = 0.010
    quantization: float = 1.2
    rowwise: float = 0.75
    delayed: float = 0.9
    mxfp8: float = 0.9
    loss: float = 16.0
    routing: float = 6.0
    grouped: float = 0.9


PRIORS = {
    "sustained_a100": 0.05, "sustained_h100": 0.05, "sustained_b200": 0.1, "power": 0.3,
    "memory": 0.1, "eager": 0.3, "compiled": 0.2, "recompute": 0.2, "flash1_a100": 0.3,
    "flash1_h100": 0.3, "flash2_a100": 0.2, "flash2_h100": 0.2, "cudnn_h100": 0.2,
    "cudnn_b200": 0.3, "attention_backward": 0.15, "ring": 0.15, "unfused": 0.2, "network": 0.15,
    "contention": 0.5, "overlap": 0.3, "straggler": 0.7, "launch": 0.4, "step": 0.7,
    "quantization": 0.4, "rowwise": 0.3, "delayed": 0.15, "mxfp8": 0.2, "loss": 0.4,
    "routing": 0.6, "grouped": 0.2,
}  # fmt: skip
"""Constant -> standard deviation of its logarithm before the fit."""

PUBLISHED = Constants()
"""The constants before the fit."""

DEFAULT = Constants(
    sustained_a100=0.925,
    sustained_h100=0.849,
    sustained_b200=0.77,
    power=0.486,
    memory=0.863,
    eager=1.8,
    compiled=1.24,
    recompute=0.703,
    flash1_a100=0.448,
    flash1_h100=0.253,
    flash2_a100=0.532,
    flash2_h100=0.355,
    cudnn_h100=0.693,
    cudnn_b200=0.56,
    attention_backward=0.782,
    ring=0.86,
    unfused=0.719,
    network=0.665,
    contention=0.231,
    overlap=0.568,
    straggler=0.0181,
    launch=1.53e-05,
    step=0.016,
    quantization=1,
    rowwise=0.648,
    delayed=0.997,
    mxfp8=0.91,
    loss=13,
    routing=9.51,
    grouped=0.712,
)

# Physical constants, not fitted.

TILES = ((128, 256, 1.0), (128, 128, 0.9), (64, 128, 0.75))
"""Tiles of a product (CUTLASS's usual ones) and their efficiency over the largest."""

RAMP = 3e-6
"""Seconds to start and drain a kernel: 2048-wide products on an H100 take 25.4 µs, one full wave of
tiles 21.6."""

FULL_WAVES = 0.97
"""Share of multiprocessors that the best measured product keeps busy: 2,048 tiles in 16 waves of
132."""

LATENCY_NODE = 9e-6
"""Seconds of the smallest all-gather or reduce-scatter in a node; half of an all-reduce's 18 µs
(dgxc-benchmarking, nccl/README.md: 16 to 20 µs up to 512 KiB on 8 H100s)."""

RAMP_NODE, RAMP_BYTES = 50e-6, 16 * 2**20
"""Seconds that a large message loses, and the size at which half of it is lost. All-reduces on 8
H100s of 1 MiB to 8 GiB follow 18 µs + 2 x 7/8 S / 480 GB/s + 100 µs S / (S + 16 MiB) within a
tenth."""

LINK = 0.80
"""Fraction of NVLink's bandwidth: all-gather 361, reduce-scatter 363, ring all-reduce 367 of 450
GB/s on 8 H200s (ml-engineering, network/README.md)."""

HOP_NODE, HOP_NETWORK, BASE_NETWORK = 1.9e-6, 4.0e-6, 10e-6
"""Seconds of a ring's hop in a node and between nodes, and of a start (NCCL's tuning, LL128)."""

POINT_TO_POINT = 10e-6
"""Seconds of a send between pipeline ranks: 3 to 6 µs of the network, and a kernel on each side."""
