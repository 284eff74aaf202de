"""Read a model's weights from a folder in Hugging Face's format, and no other files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.tensor import DTensor

from atom.titan.checkpoint import hugging_face_folder as hf_folder
from atom.titan.checkpoint.dcp import load_alone


class NotFiniteError(Exception):
    """A weight contains NaN or infinity."""


class _Chosen(FileSystem):
    """A file system that shows only the given files of a folder."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def ls(self, path: str | os.PathLike[str]) -> list[str]:  # noqa: ARG002
        return [str(path) for path in self._paths]


def reader(adapter: Any, folder: Path, *, quantized: bool = False) -> HuggingFaceStorageReader:
    """Return a storage reader of the weight files in ``folder``; torch's reads every file there."""
    made: HuggingFaceStorageReader = adapter.get_hf_storage_reader(str(folder), quantized)
    made.fs = _Chosen(hf_folder.files(folder))
    return made


def load(
    state: dict[str, Any], adapter: Any, folder: Path, *, quantized: bool = False, alone: bool
) -> dict[str, Any]:
    """Return ``state`` with the values of the folder.

    Args:
        state: the model's state dict, or this rank's part of it; its tensors may be overwritten.
        adapter: the architecture's state-dict adapter.
        folder: in Hugging Face's format, already accepted by
            :func:`atom.titan.hugging_face.weights.check`.
        quantized: whether to read quantized weights.
        alone: whether this process runs outside a process group.

    Raises:
        NotFiniteError: a weight contains NaN or infinity.
    """
    theirs = adapter.to_hf(state)
    source = reader(adapter, folder, quantized=quantized)
    if alone:
        load_alone(theirs, source)
    else:
        dcp.load(theirs, storage_reader=source)
    check_finite(theirs)
    return dict(adapter.from_hf(theirs))


def check_finite(tensors: Mapping[str, Any]) -> None:
    """Refuse tensors that contain NaN or infinity.

    Raises:
        NotFiniteError: a tensor does.
    """
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if isinstance(local, torch.Tensor) and not bool(local.isfinite().all()):
            raise NotFiniteError(f"{name} holds values that are infinite or no numbers")
