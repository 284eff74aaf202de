"""A small run to resume, and what its folder holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from atom.titan.checkpoint.dcp import SafeReader

TINY = (
    "architecture=llama3_tiny",
    "architecture.n_layers=2",
    "architecture.dim=64",
    "tokenizer=bytes",
    "dataset=local",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "lr_scheduler.warmup_steps=2",
    "lr_scheduler.total_steps=20",
    "checkpoint.interval=1",
    "metrics=none",
    "device=cpu",
)


def saved(place: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint."""
    reader = SafeReader(place / f"checkpoint/step-{step}")
    values = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    dcp.load(values, storage_reader=reader, no_dist=True)
    return values


def rows(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------- the optimizer

# Without a first moment, and with the norm of no gradient too large, the moment that a step leaves
# in a checkpoint is its gradient, to the bit.
GRADIENTS_KEPT = ("optimizer.betas=[0.0,0.95]", "training.max_norm=1e9")


def two_of(place: Path, copy: Path) -> Path:
    """Copy a run of three steps as it was after two."""
    shutil.copytree(place, copy)
    shutil.rmtree(copy / "checkpoint/step-3")
    return copy


def tree(place: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content."""
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}
