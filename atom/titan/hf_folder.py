"""A folder of Hugging Face's format: what is in it, judged without reading a weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"

_FREE = ("max_position_embeddings", "sliding_window")
"""Whole numbers that fit any weights."""


def files(folder: Path) -> list[Path]:
    """Return the files of weights.

    Raises:
        ValueError: there are none, or the index names one that is not there.
    """
    if not folder.is_dir():
        raise ValueError("there is no such folder")
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if not found:
        raise ValueError(f"holds no {SUFFIX} file")
    index = folder / INDEX
    if index.is_file():
        names = {str(name) for name in _json(index).get("weight_map", {}).values()}
        if lacking := sorted(names - {path.name for path in found}):
            raise ValueError(f"lacks {lacking[0]}, which {INDEX} names")
    return found


def shapes(folder: Path) -> dict[str, list[int]]:
    """Return name -> shape of every tensor, from the headers.

    Raises:
        ValueError: there are no files, or one cannot be read.
    """
    found = {}
    for path in files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    found[name] = list(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"holds {path.name}, which cannot be read ({error})") from None
    return found


def disagreement(folder: Path, expected: Mapping[str, Any]) -> str | None:
    """Return where ``config.json`` says other sizes than ``expected``, or None.

    Compared are the kind of model, whole numbers and switches, where both say something. Fractions
    (a base of RoPE) may be meant to differ, and no weight depends on them.

    Raises:
        ValueError: ``config.json`` is missing or cannot be read.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"holds no {CONFIG}")
    theirs = _json(folder / CONFIG)
    for key, value in expected.items():
        other = theirs.get(key)
        comparable = key == "model_type" or isinstance(value, int)
        if comparable and other is not None and key not in _FREE and other != value:
            return (
                f"its {CONFIG} says {key}={json.dumps(other)}, the architecture {json.dumps(value)}"
            )
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"holds a {path.name} that cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"holds a {path.name} that is no object")
    return content
