"""Export the adapters of a run in PEFT's format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from atom.errors import UserError
from atom.io import files, new_folder
from atom.run_dir import saved
from atom.run_dir.folder import RUN_FILE
from atom.titan import saved_model
from atom.titan.checkpoint.checkpointer import HUGGING_FACE
from atom.titan.lora import peft
from atom.titan.weights.export import DTYPES
from atom.titan.weights.merged import Adapters

_MERGED = "atom export without --adapter, which merges the adapters"
_OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        step: the training step of the adapters.
        layers: number of adapted layers.
        size: bytes of the file of weights.
        base: the weights that they belong to.
    """

    step: int
    layers: int
    size: int
    base: str


def export(
    folder: Path,
    out: Path,
    *,
    step: int | None = None,
    average: str | None = None,
    dtype: str | None = None,
) -> Exported:
    """Export the adapters of the run in ``folder``.

    Args:
        folder: the run folder.
        out: the folder to write; new or empty.
        step: the checkpoint's step; None for the newest.
        average: the callback whose averages to export; None: the adapters.
        dtype: a key of :data:`atom.titan.weights.export.DTYPES`; None for that of the checkpoint.

    Raises:
        UserError: it cannot be exported, and nothing has been written.
    """
    new_folder.check(out)
    run = saved_model.trained(folder)
    if not run.run.lora.rank:
        raise UserError(
            f"{folder} has trained all weights, and has no adapters",
            valid="atom export without --adapter",
        )
    converter = run.adapter()
    number, place = saved.newest(folder, run.run, step)
    saved.verify(place)
    adapters = Adapters(run, place, average)
    shapes = saved_model.on_meta(run.parts.model).state_dict()
    weights: dict[str, torch.Tensor] = {}
    names: list[str] = []
    for weight in adapters.updates:
        first, second = adapters.matrices(weight)
        for layer in _places(converter, weight, tuple(shapes[weight].shape)):
            names.append(layer.name)
            for matrix, values in (
                ("A", first[:, layer.columns]),
                ("B", second[layer.rows]),
            ):
                kept = values.to(DTYPES[dtype] if dtype else values.dtype)
                weights[peft.key(layer.name, matrix)] = kept.contiguous()
    theirs = converter.to_hf(shapes)
    _check_mixture(names, theirs)
    base = run.run.checkpoint.initial_load
    config = peft.config(
        run.run.lora,
        peft.targets(names, theirs),
        base.removeprefix(HUGGING_FACE) if base.startswith(HUGGING_FACE) else None,
    )
    with new_folder.filled(out) as partial:
        save_file(weights, partial / peft.WEIGHTS, metadata={"format": "pt"})
        # safetensors creates files that only their owner can read.
        (partial / peft.WEIGHTS).chmod(partial.stat().st_mode & 0o666)
        files.write_json(partial / peft.CONFIG, config)
        files.copy(run.folder / RUN_FILE, partial / RUN_FILE)
        size = (partial / peft.WEIGHTS).stat().st_size
    return Exported(number, len(names), size, base)


def _places(converter: Any, weight: str, shape: tuple[int, ...]) -> list[peft.Place]:
    found = peft.places(converter, weight, shape)
    if not found:
        raise UserError(
            f"{weight} is no layer of its own in Hugging Face's model, so that PEFT has no adapter "
            "of it",
            valid=_MERGED,
        )
    return found


def _check_mixture(names: list[str], all_weights: dict[str, Any]) -> None:
    """Refuse layers of a mixture that have the names of its experts' layers.

    PEFT gives an adapter of such a name to all experts.
    """
    for name in names:
        if name.rpartition(".")[2] in _OF_EXPERTS and any(".experts." in n for n in all_weights):
            raise UserError(
                f"PEFT takes an adapter of {name} for one of all experts of the model",
                valid=_MERGED,
            )
