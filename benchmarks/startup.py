"""Measure startup cost as a function of the number of ranks.

    python benchmarks/startup.py [--ranks 16 128 1024 10240] [--repeat 3] [--write FILE.md]

For each number of ranks, a run of Llama 3 70B in 4D is composed and checked once. Then rank 0 does
the part of startup that every rank does alone: it reads ``run.yaml``, builds its configuration, and
creates the device mesh on torch's fake process group, which creates all groups and sends nothing.
Each part runs in a separate process; results are medians of processor seconds. Collective parts
(rendezvous, NCCL communicators) need all ranks: ``events.jsonl`` of a run has their duration.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from atom.io.process import call
from atom.plugin import PreparedTokenizer
from atom.recipe.run import read
from atom.run_dir.folder import RUN_FILE

MODEL = (
    *("architecture=llama3_70b", "architecture.vocab_size=128256", "tokenizer=bytes"),
    *("dataset=stdlib", "training.seq_len=8192", "device=cpu", "kernels=reference"),
    "checkpoint.enable=false",
)


def layout(ranks: int) -> dict[str, int]:
    """Return 4D degrees for a number of ranks; the dimensions of one replica come first."""
    tensor, pipeline, context = (2, 2, 2) if ranks < 128 else (8, 4, 2)
    return {
        "data_parallel_shard_degree": ranks // (tensor * pipeline * context),
        "tensor_parallel_degree": tensor,
        "pipeline_parallel_degree": pipeline,
        "context_parallel_degree": context,
    }


def overrides(ranks: int) -> list[str]:
    degrees = [f"parallelism.{name}={degree}" for name, degree in layout(ranks).items()]
    batch = f"training.global_batch_size={ranks}"
    return [*MODEL, "parallelism=4d", f"launch.ranks={ranks}", batch, *degrees]


def launcher(ranks: int, place: Path) -> dict[str, float]:
    """Compose the run, check it completely, and write ``run.yaml``: the part done once."""
    from atom.compose import compose
    from atom.registry.host import Host
    from atom.registry.select import select

    begin = time.process_time()
    host = Host.load()
    found: list[Any] = []
    compose.main(overrides(ranks), lambda config: found.append(compose.run_of(config, host)), host)
    composed = time.process_time() - begin

    from atom.titan.preflight.preflight import preflight

    begin = time.process_time()
    ready = preflight(
        found[0],
        select(found[0], host),
        host,
        place,
        tokenizer=PreparedTokenizer(vocab_size=128256),
        joined=ranks,
    )
    checked = time.process_time() - begin
    ready.run.write(place / RUN_FILE)
    return {"compose": composed, "check": checked}


def rank(ranks: int, place: Path) -> dict[str, float]:
    """Do the part that each rank does alone: read its run, and create its mesh."""
    from atom.titan.boot import boot

    boot("cpu")
    from torch.distributed.distributed_c10d import _world
    from torchtitan.config import ParallelismConfig
    from torchtitan.distributed import ParallelDims

    from atom.registry.host import Host
    from atom.registry.select import select
    from atom.registry.trust import Trust
    from atom.titan.checks.pretend import pretending
    from atom.titan.trainer_config import trainer_config

    begin = time.process_time()
    run = read(place / RUN_FILE)
    host = Host.load(Trust.of_run(run.plugins))
    trainer_config(run, select(run, host), host, place)
    settings = time.process_time() - begin
    with pretending(0, ranks):
        begin, memory = time.process_time(), _resident()
        ParallelDims.from_config(ParallelismConfig(**layout(ranks)), ranks).build_mesh()
        mesh = time.process_time() - begin
        groups, grown = len(_world.pg_map), _resident() - memory
    return {"settings": settings, "mesh": mesh, "groups": groups, "memory": grown / 2**20}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(ranks: int, repeat: int) -> dict[str, float]:
    """Return the median of each measurement."""
    rows = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as place:
            row = call(partial(launcher, ranks, Path(place)))
            rows.append(row | call(partial(rank, ranks, Path(place))))
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 128, 1024, 10240])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--write", type=Path, help="a Markdown file for the results")
    options = parser.parse_args()
    lines = [
        "| ranks | once: composing | once: checking | a rank: reading | a rank: mesh | its groups "
        "| their memory |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for ranks in options.ranks:
        row = measure(ranks, options.repeat)
        lines.append(
            f"| {ranks:,} | {row['compose']:.2f} s | {row['check']:.2f} s "
            f"| {row['settings']:.2f} s | {row['mesh']:.3f} s | {row['groups']:.0f} "
            f"| {row['memory']:.1f} MiB |"
        )
        print(json.dumps({"ranks": ranks, **row}), flush=True)
    versions = ", ".join(
        f"{p} {metadata.version(p)}" for p in ("atom-train", "torch", "torchtitan")
    )
    about = f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {versions}."
    table = "\n".join(lines)
    print(f"\n{about}\n\n{table}")
    if options.write:
        options.write.write_text(
            "# What starting costs\n\n"
            f"`python benchmarks/startup.py`: medians of {options.repeat}, processor seconds, "
            "Llama 3 70B in 4D. The mesh is made\non torch's fake process group: all groups, and "
            f"no messages.\n\n{about}\n\n{table}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
