"""Inspect a folder in Hugging Face's format without reading weights.

The weights are the files named in ``model.safetensors.index.json``, or ``model.safetensors``. Other
files beside them (adapters, optimizers, other formats) are ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from atom.io.files import read_bytes
from atom.io.strangers import real
from atom.run_dir.checkpoint import HF_INDEX

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = HF_INDEX
SUFFIX = ".safetensors"

_MOST = 256 << 20
"""Largest accepted index, in bytes; the largest models have a hundredth of it."""

PLAIN = ("F64", "F32", "BF16", "F16")
"""Dtypes of unquantized weights."""


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry in the header of a file."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def files(folder: Path) -> list[Path]:
    """Return the weight files.

    Raises:
        ValueError: there are none, the choice is ambiguous, or a file is missing.
    """
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    names = sorted(set(_places(folder).values())) if (folder / INDEX).is_file() else [WEIGHTS]
    if not (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        found = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
        if not found:
            raise ValueError(f"holds no {SUFFIX} file")
        raise ValueError(f"holds neither {WEIGHTS} nor {INDEX}, only {', '.join(found[:3])}")
    for name in names:
        if Path(name).name != name or not name.endswith(SUFFIX):
            raise ValueError(f"holds an {INDEX} that names {name!r}, which is no file of weights")
        if not (folder / name).is_file():
            raise ValueError(f"lacks {name}, which {INDEX} names")
    if WEIGHTS not in names and (folder / WEIGHTS).is_file():
        raise ValueError(f"holds {WEIGHTS} and an {INDEX} that does not name it: two models")
    # Use names, and do not resolve links: torch's reader goes by names.
    for name in names:
        real(folder / name, folder)
    return [folder / name for name in names]


def others(folder: Path) -> list[str]:
    """Return the names of tensor files that do not belong to the weights."""
    taken = {path.name for path in files(folder)}
    return sorted(path.name for path in folder.glob(f"*{SUFFIX}") if path.name not in taken)


def tensors(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the weights by its name, from the headers.

    Raises:
        ValueError: a file cannot be read, two files hold the same tensor, or the index disagrees.
    """
    found: dict[str, Tensor] = {}
    for path in files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name in found:
                        where = f"{found[name].file.name} and in {path.name}"
                        raise ValueError(f"holds {name} twice, in {where}")
                    part = file.get_slice(name)
                    found[name] = Tensor(tuple(part.get_shape()), part.get_dtype(), path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"holds {path.name}, which cannot be read ({error})") from None
    if (folder / INDEX).is_file():
        places = _places(folder)
        for name, place in places.items():
            if name not in found or found[name].file.name != place:
                raise ValueError(
                    f"holds an {INDEX} that names {place} for {name}, which is not in it"
                )
        if unnamed := sorted(found.keys() - places.keys()):
            where = found[unnamed[0]].file.name
            raise ValueError(f"holds {unnamed[0]} in {where}, which {INDEX} does not name")
    return found


def config(folder: Path) -> dict[str, Any]:
    """Return the content of ``config.json``.

    Raises:
        ValueError: it is missing or cannot be read.
    """
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"holds no {CONFIG}")
    return _json(folder / CONFIG)


def same(one: Tensor, one_name: str, other: Tensor, other_name: str) -> bool:
    """Return whether two tensors have equal values, reading a few rows at a time."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    with (
        safe_open(one.file, framework="pt") as a,
        safe_open(other.file, framework="pt") as b,
    ):
        first, second = a.get_slice(one_name), b.get_slice(other_name)
        return all(
            first[row : row + 4096].equal(second[row : row + 4096])
            for row in range(0, one.shape[0], 4096)
        )


def _places(folder: Path) -> dict[str, str]:
    """Return the file of each tensor, from the index."""
    places = _json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"holds an {INDEX} without a weight_map of names to files")
    if not places:
        raise ValueError(f"holds an {INDEX} that names no weights")
    return places


def _json(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{twice} occurs twice")
        return content

    try:
        text = read_bytes(real(path, path.parent), most=_MOST)
        content = json.loads(text, object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"holds a {path.name} that cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {path.name} that is no object")
    return content
