"""Check the disk space for a run's checkpoints before ranks start."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any

import torch

from atom.errors import UserError
from atom.plan.layout import BYTES
from atom.run_dir import checkpoint
from atom.run_dir.folder import check_writable
from atom.titan.lora.adapt import trained
from atom.titan.optim.optimizer import state_bytes

_GIB = 2**30


def checkpoint_bytes(config: Any, model: torch.nn.Module) -> int:
    """Return the size of a full checkpoint: weights, averaged weights and optimizer state, or those
    of adapters alone.

    Args:
        config: torchtitan's ``Trainer.Config``.
        model: the whole model, on any device.
    """
    dtype = config.training.dtype
    shapes = [(name, tuple(parameter.shape)) for name, parameter in trained(model)]
    weights = sum(prod(shape) for _, shape in shapes) * (BYTES[dtype] + _of_averages(config))
    return weights + state_bytes(config.optimizer, shapes, dtype)


def _of_averages(config: Any) -> int:
    """Return the bytes of averaged weights for each weight."""
    return sum(BYTES["float32"] for opened in config.callbacks if opened.averages)


def check(config: Any, place: Path, model: torch.nn.Module) -> str:
    """Refuse a disk without space for the checkpoints that must exist at the same time.

    These are two, since a new checkpoint is written before an old one is deleted; or one, if the
    run saves only once more.

    Args:
        config: torchtitan's ``Trainer.Config``.
        place: the run folder, which may not exist yet.
        model: the whole model, on any device.

    Returns:
        A warning if those fit but not all that the run is configured to keep; otherwise "".

    Raises:
        UserError: the space is too small, or the folder is not writable.
    """
    section = config.checkpoint
    if not section.enable or section.load_only:
        return ""
    folder = place / section.folder
    there = checkpoint.steps(folder)
    steps, interval = config.training.steps, section.interval
    begun = there[-1] if there else 0
    saves = -(-steps // interval) - begun // interval
    if begun >= steps or saves < 1:
        return ""
    check_writable(folder)
    size = checkpoint_bytes(config, model)
    if section.last_save_model_only and saves == 1:
        of_weight = BYTES[section.export_dtype] + _of_averages(config)
        size = sum(parameter.numel() for _, parameter in trained(model)) * of_weight
    free = shutil.disk_usage(
        next(p for p in (folder, *folder.absolute().parents) if p.exists())
    ).free
    least = max(min(saves, 2 - len(there)), 1)
    if free < least * size:
        raise UserError(
            f"its disk has {_gib(free)} free, and {_counted(least)} of {_gib(size)} must fit, "
            "because a new one is written before an old one is deleted",
            valid="a disk with more space, or checkpoint.enable=false",
            key="run.dir",
            value=place,
        )
    kept = saves
    if section.keep_latest_k:
        kept = min(saves, section.keep_latest_k + 1 - min(len(there), section.keep_latest_k))
    if free < kept * size:
        return (
            f"the disk has {_gib(free)} free, and the run will write {_counted(kept)} of "
            f"{_gib(size)} before it deletes one (checkpoint.keep_latest_k)"
        )
    return ""


def _counted(checkpoints: int) -> str:
    return "a checkpoint" if checkpoints == 1 else f"{checkpoints:,} checkpoints"


def _gib(size: int) -> str:
    return f"{size / _GIB:,.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:,.1f} MiB"
