"""Read the weights of a folder in Hugging Face's format: its model's, and no others."""

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
    """A weight that was read holds values that are no numbers."""


class _Chosen(FileSystem):
    """A file system whose folders hold the given files and no others."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def ls(self, path: str | os.PathLike[str]) -> list[str]:  # noqa: ARG002
        return [str(path) for path in self._paths]


def reader(adapter: Any, folder: Path, *, quantized: bool = False) -> HuggingFaceStorageReader:
    """Return what reads the files of weights in ``folder``: torch's own reads every file there."""
    made: HuggingFaceStorageReader = adapter.get_hf_storage_reader(str(folder), quantized)
    made.fs = _Chosen(hf_folder.files(folder))
    return made


def load(
    state: dict[str, Any], adapter: Any, folder: Path, *, quantized: bool = False, alone: bool
) -> dict[str, Any]:
    """Return ``state`` with the values of the folder.

    Args:
        state: of the model, or of this rank's part of it; its tensors may be overwritten.
        adapter: the architecture's.
        folder: in Hugging Face's format, found good by
            :func:`atom.titan.hugging_face.weights.check`.
        quantized: whether quantized weights are to be read.
        alone: whether this process is no rank.

    Raises:
        NotFiniteError: a weight is infinite or no number.
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
    """Refuse tensors that hold an infinity or a NaN.

    Raises:
        NotFiniteError: one does.
    """
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if isinstance(local, torch.Tensor) and not bool(local.isfinite().all()):
            raise NotFiniteError(f"{name} holds values that are infinite or no numbers")
