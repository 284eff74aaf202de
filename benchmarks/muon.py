"""Compare Muon with distributed matrices against torch's own Muon on the same DTensors.

    python benchmarks/muon.py [--ranks 2] [--layers 4] [--width 512] [--pairs 5] [--write FILE.md]

The matrices are those of a transformer's layers, in float32, sharded by FSDP. torch's Muon gathers
the operands of each matrix product on every rank; ATOM's sends each matrix to one rank, which
computes the update for all. Both take the same steps alternately, and their parameters are
compared. Ranks are processes on this machine with one thread each: on a CPU, over gloo.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from atom.titan.optim.muon import Muon

OPTIONS: dict[str, Any] = {"lr": 1e-3, "adjust_lr_fn": "match_rms_adamw"}


def shapes(layers: int, width: int) -> list[tuple[int, int]]:
    """Return the shapes of Llama's matrices, with a quarter of the heads for keys and values."""
    hidden = width * 7 // 2
    layer = [(width, width), (width // 4, width), (width // 4, width), (width, width)]
    return [*layer, (hidden, width), (hidden, width), (width, hidden)] * layers


def run(rank: int, options: argparse.Namespace, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=options.ranks
    )
    mesh = init_device_mesh("cpu", (options.ranks,), mesh_dim_names=("fsdp",))
    torch.manual_seed(0)
    wholes = [torch.randn(shape) for shape in shapes(options.layers, options.width)]
    sides: dict[str, tuple[list[Any], torch.optim.Optimizer]] = {}
    for name, kind in (("torch", torch.optim.Muon), ("atom", Muon)):
        parameters: list[Any] = []
        for whole in wholes:
            parameter = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
            parameter.grad = distribute_tensor(whole.sin(), mesh, [Shard(0)])
            parameters.append(parameter)
        sides[name] = (parameters, kind(parameters, **OPTIONS))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(options.pairs + 1):
        for name, (_, optimizer) in sorted(sides.items(), reverse=bool(pair % 2)):
            dist.barrier()
            begin = time.perf_counter()
            optimizer.step()
            dist.barrier()
            seconds[name].append(time.perf_counter() - begin)
    pairs = zip(sides["torch"][0], sides["atom"][0], strict=True)
    differences = [(one.full_tensor() - other.full_tensor()).abs().max() for one, other in pairs]
    if rank == 0:
        results.put((seconds, max(differences).item()))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    context = get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = [
            context.Process(target=run, args=(rank, options, store, results))
            for rank in range(options.ranks)
        ]
        for process in ranks:
            process.start()
        seconds, difference = results.get()
        for process in ranks:
            process.join()
    each = {
        name: values[1:] for name, values in seconds.items()
    }  # the first step allocates the optimizer state
    ratios = sorted(one / other for one, other in zip(each["atom"], each["torch"], strict=True))
    medians = {name: 1000 * statistics.median(values) for name, values in each.items()}
    page = f"""# A step of Muon

`python benchmarks/muon.py --ranks {options.ranks} --layers {options.layers} --width \
{options.width} --pairs {options.pairs}`, {date.today()}, torch {torch.__version__}, \
{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU.

| ranks | matrices | torch.optim.Muon | ATOM | ATOM / torch, median | least to most |
| ---: | ---: | ---: | ---: | ---: | ---: |
| {options.ranks} | {len(shapes(options.layers, options.width))} | {medians["torch"]:.0f} ms \
| {medians["atom"]:.0f} ms | {statistics.median(ratios):.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |

The parameters of both differ by {difference:.1g} at the most after the same steps.
"""
    print(page)
    if options.write:
        options.write.write_text(page)


if __name__ == "__main__":
    main()
