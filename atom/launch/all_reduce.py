"""Run one rank of an all-reduce over two nodes, for :mod:`atom.launch.links`.

It measures the median bus bandwidth of a few all-reduces in GB/s: 2 (n - 1) / n × bytes / seconds,
as NCCL's own tests count it. It fails if a sum is wrong.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.distributed as dist

from atom.launch.rendezvous import tcp_store

_MEETING_SECONDS = 1800
_TIMES = 5
_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""Message size in bytes; on a GPU, large enough to reach the full speed of its links."""


def main(endpoint: str, rank: int, ranks: int, device: str) -> float:
    """Join the other ranks and run the all-reduces; return the bandwidth."""
    backend = "nccl" if device == "cuda" else "gloo"
    where = torch.device(device, rank % (ranks // 2)) if device == "cuda" else torch.device("cpu")
    host, _, port = endpoint.rpartition(":")
    store = tcp_store(host, int(port), ranks, listen=rank == 0, seconds=_MEETING_SECONDS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    numbers = torch.empty(_BYTES[device] // 4, device=where)
    seconds = []
    for _ in range(_TIMES + 1):
        numbers.fill_(rank + 1)
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(numbers)
        numbers[0].item()  # synchronizes with the GPU
        seconds.append(time.perf_counter() - begin)
        if (numbers != ranks * (ranks + 1) / 2).any():
            raise ArithmeticError("a sum over the ranks is wrong")
    moved = 2 * (ranks - 1) / ranks * _BYTES[device]
    dist.destroy_process_group()
    return moved / statistics.median(seconds[1:]) / 1e9
