"""Measure what a device file says of a machine: products, memory, launches, collectives."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from typing import Any

from atom.bench import ceiling
from atom.bench.timing import timed
from atom.io.process import Child, call
from atom.plan.device import DeviceDescription

SIZES = (2**10, 2**16, 2**20, 2**24)
"""Bytes of the all-gathers that are timed."""

REPEATS = 20
PATIENCE = 120.0
LAUNCHED = 2000


def measured(
    device: DeviceDescription, dtypes: tuple[str, ...], *, seconds: float, ranks: int
) -> DeviceDescription:
    """Return ``device`` with the numbers of this machine.

    Args:
        device: what is known of it.
        dtypes: dtypes of products to time.
        seconds: of each measurement.
        ranks: ranks of the collectives; 1: they are not timed.
    """
    # In children, because torch's threads would outlive the measurement.
    found, launch = call(partial(_one, device.kind, dtypes, seconds))
    constants = dict(device.constants or {}) | {"launch": launch, "memory": 1.0}
    changed = replace(
        device,
        products=dict(device.products or {}) | found.flops,
        memory_bandwidth=found.bandwidth,
        constants=constants,
    )
    if ranks > 1:
        latency, bandwidth = collectives(device.kind, ranks)
        changed = replace(changed, latency=latency, node_bandwidth=bandwidth)
    return changed


def _one(kind: str, dtypes: tuple[str, ...], seconds: float) -> tuple[ceiling.Ceiling, float]:
    import torch

    torch.set_num_threads(1)
    small = torch.ones(8, device=kind)
    taken = timed(lambda: [small.add_(1.0) for _ in range(LAUNCHED)], kind, seconds)
    return ceiling.measured(kind, dtypes, seconds), taken.low / LAUNCHED


def collectives(kind: str, ranks: int) -> tuple[float, float]:
    """Return the latency of an all-gather in a node and its bandwidth, as the time model has them.

    The least-squares line of the time over the bytes that a rank receives.
    """
    with tempfile.TemporaryDirectory() as folder:
        each = [Child(partial(_gathers, kind, rank, ranks, folder)) for rank in range(ranks)]
        times = next(iter([child.result() for child in each]))
    share = (ranks - 1) / ranks
    x = [size * share for size in SIZES]
    # Relative errors count, so that the smallest message fixes the latency.
    weights = [1 / taken**2 for taken in times]
    total = sum(weights)
    mean_x = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    mean_y = sum(w * b for w, b in zip(weights, times, strict=True)) / total
    over = sum(w * (a - mean_x) ** 2 for w, a in zip(weights, x, strict=True))
    slope = sum(
        w * (a - mean_x) * (b - mean_y) for w, a, b in zip(weights, x, times, strict=True)
    ) / over  # fmt: skip
    latency = max(mean_y - slope * mean_x, min(times) / 2)
    from atom.plan.constants import LINK

    return latency, 1 / max(slope, math.ulp(1.0)) / LINK


def _gathers(kind: str, rank: int, ranks: int, folder: str) -> list[float]:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(rank)
    store: Any = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=PATIENCE),
    )
    found = []
    for size in SIZES:
        mine = torch.ones(size // ranks // 4, device=kind)
        out = torch.empty(size // ranks // 4 * ranks, device=kind)
        taken = []
        for _ in range(REPEATS + 2):
            dist.barrier()
            start = time.perf_counter()
            dist.all_gather_into_tensor(out, mine)
            if kind == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
        found.append(statistics.median(taken[2:]))
    dist.destroy_process_group()
    return found
