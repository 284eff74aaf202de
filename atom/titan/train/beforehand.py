"""Prepare what a run computes of its data before training, once: keys of it, and the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from atom.data.position import data_step
from atom.io.files import read_text, sha256
from atom.run_dir import events, inputs

if TYPE_CHECKING:
    from atom.titan.train.trainer import AtomTrainer, Microbatch

T = TypeVar("T")

COMPLETE = ".complete"
"""Suffix of a mark: everything for the data that it names is there."""

_OF_WEIGHTS = (".safetensors", ".distcp")

Groups = list[list["Microbatch"]]
"""Micro-batches by forward pass."""


def digest(content: Any) -> str:
    """Return a digest of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def weights(folder: Path) -> dict[str, str]:
    """Return the digests of the files of weights in a folder, of which each rank reads some."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _OF_WEIGHTS)
    mine = names[dist.get_rank() :: dist.get_world_size()]
    found: list[dict[str, str]] = [{} for _ in range(dist.get_world_size())]
    # The files of a cache of Hugging Face's are links.
    dist.all_gather_object(found, {name: sha256((folder / name).resolve()) for name in mine})
    return dict(sorted((name, value) for each in found for name, value in each.items()))


def mark(trainer: AtomTrainer, data: Mapping[str, Any]) -> str:
    """Return the name of the mark for the data that the run reads.

    Args:
        trainer: the trainer.
        data: the settings that change which data it reads.
    """
    content = told(read_text(trainer.run / inputs.FILE_NAME))
    return f"{digest([content, _steps(trainer), data])}{COMPLETE}"


def batches(trainer: AtomTrainer) -> Iterator[tuple[Sequence[bytes], Groups]]:
    """Yield the examples' sequences of each step of the run, and its micro-batches."""
    loader = trainer.another_loader()
    read = iter(loader)
    count = trainer.num_pipeline_parallel_microbatches
    for step in range(1, _steps(trainer) + 1):
        groups = [
            [trainer.on_device(next(read)) for _ in range(count)]
            for _ in range(loader.passes(step) // count)
        ]
        yield loader.sequences(), groups
    loader.close()


def _steps(trainer: AtomTrainer) -> int:
    """Return the number of global batches that the run reads."""
    return data_step(trainer.config.training.steps, told(events.read(trainer.run))) + 1


def told(here: T) -> T:
    """Return what rank 0 found."""
    seen = [here]
    dist.broadcast_object_list(seen, src=0)
    return seen[0]


def on_any(here: bool, device: torch.device) -> bool:
    """Return whether it is so on any rank."""
    found = torch.tensor(here, dtype=torch.int32, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def added(here: int, device: torch.device) -> int:
    """Return the sum over all ranks."""
    total = torch.tensor(here, dtype=torch.int64, device=device)
    dist.all_reduce(total)
    return int(total)
