"""How long something takes, and how much memory.

On a GPU by ``triton.testing.do_bench``: CUDA events, a warm-up, and a flushed L2 cache before each
repetition. What is timed is the replay of a CUDA graph, so that no launch from Python is in it;
what cannot be captured is launched each time, and that is said. On a CPU by
``torch.utils.benchmark``, whose caches stay warm.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Call = Callable[[], object]

_LEAST = 5
"""Repetitions, at the least, of what takes long: quartiles need some."""


@dataclass(frozen=True)
class Timing:
    """Seconds: the median and the quartiles around it. ``by`` is how the call was made."""

    median: float
    low: float
    high: float
    by: str


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Take numbers that are next to zero for zero on a CPU, which takes a hundred times as long for
    them: random logits have probabilities so small, and those of a model have not."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def timed(call: Call, device: str, seconds: float) -> Timing:
    """Return how long ``call`` takes, repeated for about ``seconds``."""
    if device == "cuda":
        return _on_cuda(call, seconds)
    import torch
    from torch.utils.benchmark import Timer

    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    call()  # a first one may compile
    found = timer.blocked_autorange(min_run_time=seconds)
    times = found.times
    while len(times) < _LEAST:
        times += timer.timeit(found.number_per_run).times
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, low, high, "call")


def timer(device: str) -> str:
    """Return what times on ``device``, in words."""
    if device == "cuda":
        return "triton.testing.do_bench of a CUDA graph's replay, L2 cache flushed"
    import torch

    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    return f"torch.utils.benchmark, {threads} thread{plural}, caches warm, denormals flushed"


def peak_memory(call: Call, device: str) -> int | None:
    """Return the bytes that ``call`` allocates at the most, beside what there was before.

    None on a CPU, whose allocator does not say.
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
    """Return the replay of ``call``, or None if it cannot be captured."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, tunes and allocates, which a capture must not
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
