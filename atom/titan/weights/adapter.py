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
from atom.titan.saved_model import Trained
from atom.titan.weights.export import DTYPES
from atom.titan.weights.merged import Adapters

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_WEIGHT = ".weight"
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


@dataclass(frozen=True)
class _Place:
    """A layer of the Hugging Face model that has rows and columns of one of the run's.

    ``name`` is without ``.weight``.
    """

    name: str
    rows: torch.Tensor
    columns: torch.Tensor


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
                weights[f"{_PREFIX}{layer.name}.lora_{matrix}.weight"] = kept.contiguous()
    theirs = converter.to_hf(shapes)
    _check_mixture(names, theirs)
    config = _config(run, _targets(names, theirs))
    with new_folder.filled(out) as partial:
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        # safetensors creates files that only their owner can read.
        (partial / WEIGHTS).chmod(partial.stat().st_mode & 0o666)
        files.write_json(partial / CONFIG, config)
        files.copy(run.folder / RUN_FILE, partial / RUN_FILE)
        size = (partial / WEIGHTS).stat().st_size
    return Exported(number, len(names), size, run.run.checkpoint.initial_load)


def _places(converter: Any, weight: str, shape: tuple[int, ...]) -> list[_Place]:
    """Return the layers of the Hugging Face model that a weight becomes.

    Architectures permute and divide weights. Which row and column of the weight each of theirs is,
    is found by converting weights that hold the numbers of their rows and columns.
    """
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in shape)
    by_row = converter.to_hf({weight: rows[:, None].expand(shape).contiguous()})
    by_column = converter.to_hf({weight: columns.expand(shape).contiguous()})
    found: list[_Place] = []
    for name, numbers in by_row.items():
        mine, across = numbers[:, 0], by_column[name][0]
        whole = numbers.dim() == 2 and name.endswith(_WEIGHT)
        if not (whole and torch.equal(numbers, mine[:, None].expand_as(numbers))):
            found = []
            break
        if not torch.equal(by_column[name], across.expand_as(numbers)):
            found = []
            break
        found.append(_Place(name.removesuffix(_WEIGHT), mine.long(), across.long()))
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


def _targets(names: list[str], all_weights: dict[str, Any]) -> list[str]:
    """Return the ends of the names of adapted layers, or whole names if some are not adapted."""
    ends = {name.rpartition(".")[2] for name in names}
    layers = (name.removesuffix(_WEIGHT) for name in all_weights)
    alike = {name for name in layers if name.rpartition(".")[2] in ends}
    return sorted(ends if alike == set(names) else set(names))


def _config(run: Trained, targets: list[str]) -> dict[str, Any]:
    lora, base = run.run.lora, run.run.checkpoint.initial_load
    in_their_format = base.startswith(HUGGING_FACE)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.removeprefix(HUGGING_FACE) if in_their_format else None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
