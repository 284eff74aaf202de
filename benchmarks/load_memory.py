"""Measure the memory of export, averaging and loading: no process may ever hold the whole model.

    python benchmarks/load_memory.py [--write]

A model with random weights is saved as two checkpoints of a run. One process averages them, another
one exports the second to Hugging Face's format, and 4 FSDP ranks load it from there. Meanwhile the
anonymous resident memory of each process is sampled; the result is its growth up to the peak, as a
fraction of the model's bytes. A rank's own shards, a quarter of the model, are allocated before, so
the growth is the overhead of loading. Memory-mapped files are not counted, because the kernel can
drop them at any time.

``--write`` writes the results to ``benchmarks/results/load_memory.md``. Exit code 1: a limit is
exceeded.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from atom.io.process import call

RESULTS = Path(__file__).with_name("results") / "load_memory.md"
RANKS = 4
LIMIT = 0.75
"""As a fraction of the model's bytes."""

SHARD_SIZE = 16_000_000
"""Bytes per file of the export."""

LLAMA: dict[str, Any] = {
    "name": "llama3", "dim": 512, "n_layers": 10, "n_heads": 8, "n_kv_heads": 4,
    "multiple_of": 256, "vocab_size": 4096, "rope_scaling": "none",
}  # fmt: skip
MIXTURE: dict[str, Any] = {
    "name": "qwen3_moe", "dim": 256, "n_layers": 8, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64,
    "moe_hidden_dim": 256, "num_experts": 16, "top_k": 2, "vocab_size": 4096,
    "load_balance_coeff": None,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Sizes in bytes.

    Attributes:
        model: all weights, in float32.
        export: growth of the exporting process.
        average: growth of the averaging process.
        load: growth of each loading rank.
    """

    model: int
    export: int
    average: int
    load: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, float, float]:
        """Return the growth of the export, of the average and of the worst rank, as fractions of
        the model."""
        export, average, load = self.export, self.average, max(self.load)
        return export / self.model, average / self.model, load / self.model


def measure(architecture: dict[str, Any], place: Path) -> Measured:
    """Save, export, average and load a model in the folder ``place``."""
    model = call(partial(save, architecture, place / "source"))
    exported = call(partial(export, place / "source", place / "hf"))
    averaged = call(partial(average, place / "source", place / "mean"))
    return Measured(model, exported, averaged, call(partial(load, architecture, place)))


def save(architecture: dict[str, Any], folder: Path) -> int:
    """Write a run with two checkpoints of random weights; return the bytes of the weights."""
    from atom.titan.boot import boot

    boot("cpu")
    import torch
    import torch.distributed.checkpoint as dcp

    from atom.recipe.resolved import Resolved
    from atom.recipe.run import DEGREES, parse
    from atom.run_dir import checkpoint
    from atom.run_dir.folder import RUN_FILE
    from atom.titan import saved_model
    from atom.titan.checkpoint.dcp import AtomicWriter

    resolved = Resolved(
        device="cpu",
        world_size=1,
        vocab_size=320,
        global_batch_size=RANKS,
        degrees=dict.fromkeys(DEGREES, 1),
        kernels={},
    )
    folder.mkdir(parents=True)
    run = parse(sections(architecture)).model_copy(update={"resolved": resolved})
    run.write(folder / RUN_FILE)
    shapes = saved_model.on_meta(saved_model.trained(folder).parts.model).state_dict()
    for step in (1, 2):
        state = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
        writer = AtomicWriter(folder / checkpoint.FOLDER, step, model_only=True)
        dcp.save(state, storage_writer=writer, no_dist=True)
    return sum(tensor.nbytes for tensor in state.values())


def export(source: Path, out: Path) -> int:
    """Export the run; return the growth of this process."""
    from atom.titan.boot import boot

    boot("cpu")
    from atom.titan.weights.export import export as write

    with peak_growth() as grown:
        write(source, out, shard_size=SHARD_SIZE)
    return grown()


def average(source: Path, out: Path) -> int:
    """Average the run's checkpoints; return the growth of this process."""
    from atom.titan.boot import boot

    boot("cpu")
    from atom.run_dir.averaging import choose
    from atom.titan.weights.average import average as write

    sources = choose([str(source)], [1, 2], [])
    with peak_growth() as grown:
        write(sources, out)
    return grown()


def load(architecture: dict[str, Any], place: Path) -> tuple[int, ...]:
    """Load the export on FSDP ranks; return the growth of each."""
    from atom.launch.start import prepare_folder
    from atom.recipe.run import parse
    from atom.registry.host import Host

    run = parse(sections(architecture, {"enable": True, "initial_load": f"hf:{place / 'hf'}"}))
    with contextlib.redirect_stdout(io.StringIO()):
        prepare_folder(run, Host.load(), place / "run", {})
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from atom.titan import trainer_config  # noqa: F401 - once, before ranks are forked

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=RANKS,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        run_id=place.name,
        max_restarts=0,
    )
    found = elastic_launch(settings, one_rank)(str(place / "run"))
    return tuple(found[rank] for rank in range(RANKS))


def one_rank(folder: str) -> int:
    """Build the trainer of this rank, load the weights, and return the growth."""
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the process's life
    import torch

    from atom.recipe.run import read
    from atom.registry.host import Host
    from atom.registry.select import select
    from atom.run_dir.folder import RUN_FILE
    from atom.titan.trainer_config import trainer_config

    torch.set_num_threads(1)
    place = Path(folder)
    run, host = read(place / RUN_FILE), Host.load()
    trainer = trainer_config(run, select(run, host), host, place).build()
    before = _checksum(trainer)
    with peak_growth() as grown:
        trainer.checkpointer.load(step=-1)
    assert _checksum(trainer) != before, "nothing was loaded"
    growth = grown()
    trainer.close()
    torch.distributed.destroy_process_group()
    return growth


def _checksum(trainer: Any) -> float:
    return float(
        sum(p.to_local().double().sum() for part in trainer.model_parts for p in part.parameters())
    )


@contextlib.contextmanager
def peak_growth() -> Iterator[Callable[[], int]]:
    """Sample this process's memory within the context; yield a function that returns its growth."""
    gc.collect()
    # Freed memory that the allocator keeps would hide new allocations.
    ctypes.CDLL(None).malloc_trim(0)
    begin = peak = _anonymous()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield lambda: peak - begin
    finally:
        peak = max(peak, _anonymous())
        done.set()
        thread.join()


def _anonymous() -> int:
    """Return the anonymous memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell RssAnon")


def sections(
    architecture: dict[str, Any], checkpoint: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the sections of a run."""
    return {
        "device": "cpu",
        "architecture": architecture,
        "tokenizer": {"name": "bytes"},
        "dataset": {"name": "stdlib"},
        "optimizer": {"name": "AdamW"},
        "parallelism": {"name": "mesh", "data_parallel_shard_degree": RANKS},
        "training": {
            "steps": 1,
            "seq_len": 64,
            "global_batch_size": RANKS,
            "disable_cuda_graphs": True,
        },
        "activation_checkpoint": {"mode": "none"},
        "checkpoint": checkpoint or {"enable": False},
    }


TEXT = """# Memory of export, of averaging and of loading

{today}, {cores}-core {machine} {system}, no GPU; Python {python}, torch {torch}, torchtitan
{torchtitan}. Made by `python benchmarks/load_memory.py --write`.

A model in Hugging Face's format, in files of {shard} MB, is loaded by {ranks} ranks of FSDP: each
holds a quarter of the weights, and grows while it loads by what is shown, in the model's bytes.
`atom average` averages two checkpoints. Limit: {limit:.0%} of the model.

| model | MB | export, one process | average, one process | load, the worst rank |
| --- | ---: | ---: | ---: | ---: |
{rows}
"""


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args(arguments)
    rows, good = [], True
    for architecture in (LLAMA, MIXTURE):
        with tempfile.TemporaryDirectory() as place:
            found = measure(architecture, Path(place))
        shares = found.shares
        good &= max(shares) <= LIMIT
        size = found.model / 1e6
        cells = " | ".join(f"{share:.0%}" for share in shares)
        rows.append(f"| {architecture['name']} | {size:.0f} | {cells} |")
        print(rows[-1], flush=True)
    if options.write:
        RESULTS.write_text(
            TEXT.format(
                today=date.today().isoformat(),
                cores=os.cpu_count(),
                machine=platform.machine().replace("_", "-"),
                system=platform.system(),
                python=platform.python_version(),
                torch=metadata.version("torch"),
                torchtitan=metadata.version("torchtitan"),
                shard=SHARD_SIZE // 10**6,
                ranks=RANKS,
                limit=LIMIT,
                rows="\n".join(rows),
            )
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
