"""Measure a call's time and memory.

On a GPU ``triton.testing.do_bench`` measures: CUDA events, a warm-up, and a flushed L2 cache before
each repetition. It times the replay of a CUDA graph, which excludes launches from Python; a call
that cannot be captured is launched each time, and the result says so. On a CPU
``torch.utils.benchmark`` measures, with warm caches.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Call = Callable[[], object]

_LEAST = 5
"""Minimum repetitions of a slow call, so that quartiles exist."""


@dataclass(frozen=True)
class Timing:
    """Seconds: the median and its quartiles. ``by`` names the launch method."""

    median: float
    low: float
    high: float
    by: str


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Flush denormal numbers to zero on a CPU, where they are about a hundred times slower.

    Random logits produce probabilities that small; a model's logits do not.
    """
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def timed(call: Call, device: str, seconds: float) -> Timing:
    """Return the time of ``call``, repeated for about ``seconds``."""
    if device == "cuda":
        return _on_cuda(call, seconds)
    import torch
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    call()  # the first call may compile
    found = timer.blocked_autorange(min_run_time=seconds)
    times = found.times
    while len(times) < _LEAST:
        times += timer.timeit(found.number_per_run).times
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, "call")


def timer(device: str) -> str:
    """Return the name of the timing method on ``device``."""
    if device == "cuda":
        return "triton.testing.do_bench of a CUDA graph's replay, L2 cache flushed"
    import torch

    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    return f"torch.utils.benchmark, {threads} thread{plural}, caches warm, denormals flushed"


def peak_memory(call: Call, device: str) -> int | None:
    """Return the peak bytes that ``call`` allocates beyond those allocated before.

    None on a CPU: its allocator does not report it.
    """
    if device != "cuda":
        return None
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _on_cuda(call: Call, seconds: float) -> Timing:
    from triton.testing import do_bench

    replay = _captured(call)
    low, median, high = do_bench(
        replay or call, warmup=25, rep=round(1000 * seconds), quantiles=[0.25, 0.5, 0.75]
    )
    return Timing(median / 1e3, low / 1e3, high / 1e3, "graph" if replay else "launches")


def _captured(call: Call) -> Call | None:
    """Return the replay of ``call`` as a CUDA graph, or None if it cannot be captured."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, tunes and allocates: forbidden during capture
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay
