"""Exchange adapters with PEFT: its names, its settings, and the rows and columns of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import open_regular
from atom.recipe.lora import Lora
from atom.titan.lora import layers
from atom.titan.lora.adapt import updated

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
KEY = "lora.adapter"
_PREFIX = "base_model.model."
_WEIGHT = ".weight"
_UNUSUAL = {
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "target_parameters": None,
}
"""Settings of PEFT that change the model, with the values that change nothing."""


@dataclass(frozen=True)
class Place:
    """A layer of the Hugging Face model that has rows and columns of one of the run's.

    ``name`` is without ``.weight``.
    """

    name: str
    rows: torch.Tensor
    columns: torch.Tensor


def key(layer: str, matrix: str) -> str:
    """Return PEFT's name of the matrix A or B of a layer."""
    return f"{_PREFIX}{layer}.lora_{matrix}.weight"


def places(converter: Any, weight: str, shape: tuple[int, ...]) -> list[Place]:
    """Return the layers of the Hugging Face model that a weight becomes; none if it is a part of
    another one.

    Architectures permute and divide weights. Which row and column of the weight each of theirs is,
    is found by converting weights that hold the numbers of their rows and columns.
    """
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in shape)
    by_row = converter.to_hf({weight: rows[:, None].expand(shape).contiguous()})
    by_column = converter.to_hf({weight: columns.expand(shape).contiguous()})
    found = []
    for name, numbers in by_row.items():
        if numbers.dim() != 2 or not name.endswith(_WEIGHT):
            return []
        mine, across = numbers[:, 0], by_column[name][0]
        if not torch.equal(numbers, mine[:, None].expand_as(numbers)):
            return []
        if not torch.equal(by_column[name], across.expand_as(numbers)):
            return []
        found.append(Place(name.removesuffix(_WEIGHT), mine.long(), across.long()))
    return found


def config(lora: Lora, targets: list[str], base: str | None) -> dict[str, Any]:
    """Return the content of PEFT's file of settings."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def check(folder: Path, lora: Lora, converter: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a folder with other adapters than the run's.

    Args:
        folder: the folder.
        lora: the section of the run.
        converter: the state-dict adapter of the architecture.
        shapes: the parameters of all adapters of the run, by name.

    Raises:
        UserError: names the difference.
    """
    _check_config(folder, lora)
    _, unread = _converted(folder, converter, shapes)
    if unread:
        raise _refusal(folder, f"has {min(unread)}, and lora.targets do not choose that layer")


def read(
    folder: Path, converter: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Return the adapters in a folder that PEFT wrote, under the names of the run's.

    Args:
        folder: the folder.
        converter: the state-dict adapter of the architecture.
        shapes: the parameters of adapters to read, by name.

    Raises:
        UserError: it cannot be read, or lacks one.
    """
    return _converted(folder, converter, shapes)[0]


def _converted(
    folder: Path, converter: Any, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Return the adapters under the names of the run's, and PEFT's names of others."""
    theirs = _read(folder)
    unread = set(theirs)
    found: dict[str, torch.Tensor] = {}
    for name in shapes:
        if not name.endswith(f".{layers.A}.weight"):
            continue
        other = f"{name.removesuffix(f'{layers.A}.weight')}{layers.B}.weight"
        first, second = torch.zeros(shapes[name]), torch.zeros(shapes[other])
        weight = updated(name)
        there = places(converter, weight, (shapes[other][0], shapes[name][1]))
        if len(there) != 1:
            raise _refusal(folder, f"cannot have an adapter of {weight.removesuffix(_WEIGHT)}")
        (place,) = there
        for values, matrix in ((first, "A"), (second, "B")):
            given = theirs.get(key(place.name, matrix))
            if given is None:
                raise _refusal(folder, f"has no {key(place.name, matrix)}, and the run adapts it")
            if tuple(given.shape) != tuple(values.shape):
                raise _refusal(
                    folder,
                    f"has {key(place.name, matrix)} of shape {list(given.shape)}, and the run "
                    f"needs {list(values.shape)}",
                )
            if not bool(given.isfinite().all()):
                raise _refusal(folder, f"has NaN or infinity in {key(place.name, matrix)}")
            unread.discard(key(place.name, matrix))
        first[:, place.columns] = theirs[key(place.name, "A")].float()
        second[place.rows] = theirs[key(place.name, "B")].float()
        found |= {name: first, other: second}
    return found, unread


def _check_config(folder: Path, lora: Lora) -> None:
    try:
        theirs = json_data.read(folder / CONFIG)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _refusal(folder, f"{CONFIG}: {reason}") from None
    if theirs.get("peft_type") != "LORA":
        raise _refusal(folder, "is of another kind than LORA")
    for field, mine, name in (
        ("r", lora.rank, "rank"),
        ("lora_alpha", lora.alpha, "alpha"),
        ("use_rslora", lora.rslora, "rslora"),
    ):
        if theirs.get(field, False) != mine:
            raise UserError(
                f"{folder} has {field}={theirs.get(field)}",
                valid=str(theirs.get(field)).lower(),
                key=f"lora.{name}",
                value=mine,
            )
    for field, usual in _UNUSUAL.items():
        if theirs.get(field, usual) not in (usual, None):
            raise _refusal(folder, f"has {field}={theirs[field]}, which ATOM does not have")


def _read(folder: Path) -> dict[str, torch.Tensor]:
    try:
        with open_regular(folder / WEIGHTS) as file:
            return load(file.read())
    except OSError as error:
        raise _refusal(folder, f"{WEIGHTS}: {error.strerror}") from None
    except (SafetensorError, ValueError) as error:
        raise _refusal(folder, f"{WEIGHTS} cannot be read: {error}") from None


def targets(names: Iterable[str], all_weights: Iterable[str]) -> list[str]:
    """Return the ends of the names of adapted layers, or whole names if others have these ends.

    Args:
        names: the adapted layers.
        all_weights: the weights of the model.
    """
    mine = set(names)
    ends = {name.rpartition(".")[2] for name in mine}
    every = (name.removesuffix(_WEIGHT) for name in all_weights)
    alike = {name for name in every if name.rpartition(".")[2] in ends}
    return sorted(ends if alike == mine else mine)


def _refusal(folder: Path, problem: str) -> UserError:
    return UserError(
        problem, valid="the folder of `atom export --adapter`, or of PEFT", key=KEY, value=folder
    )
