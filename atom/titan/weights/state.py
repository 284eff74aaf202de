"""Convert a checkpoint to safetensors and JSON, for others, and back.

``state.safetensors`` has every tensor of the checkpoint under its own name, ``state.json`` all
other values. Tensors are read and written one at a time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from atom.errors import UserError
from atom.io import json_data
from atom.io.files import is_regular, open_regular, write_json
from atom.run_dir import checkpoint
from atom.titan.checkpoint import tensor_digest
from atom.titan.checkpoint.checkpointer import RANDOM
from atom.titan.checkpoint.dcp import AtomicWriter, SafePlanner, SafeReader, load_alone
from atom.titan.saved_model import Checkpoint

TENSORS = "state.safetensors"
VALUES = "state.json"

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MOST_HEADER = 100 << 20


def save(place: Path, out: Path, *, weights_only: bool = False) -> dict[str, str]:
    """Write a checkpoint to the folder ``out``; return the digest of each tensor.

    Args:
        place: the checkpoint.
        out: an existing folder.
        weights_only: leave out the optimizer's state.

    Raises:
        UserError: the checkpoint cannot be read, or a tensor differs from its recorded digest.
    """
    source = Checkpoint(place)
    names = [n for n in sorted(source.tensors) if not (weights_only and n.startswith("optimizer."))]
    entries = [(name, source.tensors[name]) for name in names]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in entries:
        size = math.prod(entry.size) * entry.properties.dtype.itemsize
        header[name] = {
            "dtype": _CODES[entry.properties.dtype],
            "shape": list(entry.size),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    recorded = recorded_digests(place)
    digests = {}
    with (out / TENSORS).open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, _ in entries:
            tensor = source.read(name)
            digests[name] = digest_of(tensor)
            if recorded.get(name, digests[name]) != digests[name]:
                raise UserError(
                    f"the checkpoint {place} is damaged: {name} has other values than it was "
                    "saved with"
                )
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    write_json(out / VALUES, {"values": _values(place, weights_only=weights_only)})
    return digests


def recorded_digests(place: Path) -> dict[str, str]:
    """Return the digests of tensors that a checkpoint was saved with; none of an older ATOM."""
    if not is_regular(place / checkpoint.TENSORS):
        return {}
    listed = json_data.read(place / checkpoint.TENSORS, most=_MOST_HEADER).get("tensors")
    return {name: str(each[2]) for name, each in listed.items()} if listed else {}


def digest_of(tensor: torch.Tensor) -> str:
    """Return the digest of a whole tensor, as a checkpoint records it."""
    found = tensor_digest.part(tensor, [0] * tensor.dim(), tensor.shape)
    return f"{found:016x}"


def tensors(place: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of ``state.safetensors``, one at a time.

    Raises:
        ValueError: it is no file of safetensors.
    """
    with open_regular(place / TENSORS) as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= _MOST_HEADER:
            raise ValueError("its header has no valid size")
        header = json_data.loads(file.read(size))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        header.pop("__metadata__", None)
        at, available = 0, os.fstat(file.fileno()).st_size - file.tell()
        for name, entry in header.items():
            dtype, shape, (begin, end) = _entry(entry)
            if begin != at or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} does not have the bytes of its shape")
            if end > available:
                raise ValueError("it is too short")
            content = bytearray(end - begin)
            if file.readinto(content) != end - begin:
                raise ValueError("it is too short")
            at = end
            flat = (
                torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            )
            yield name, flat.reshape(shape)
        if file.read(1):
            raise ValueError("it is too long")


def _entry(entry: Any) -> tuple[torch.dtype, list[int], list[int]]:
    try:
        dtype, shape = _DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
        begin, end = (int(offset) for offset in entry["data_offsets"])
    except (TypeError, KeyError, ValueError):
        raise ValueError("an entry of its header is not valid") from None
    if min([*shape, begin, end]) < 0:
        raise ValueError("an entry of its header is negative")
    return dtype, shape, [begin, end]


def restore(place: Path, folder: Path, step: int, companions: tuple[Path, ...]) -> None:
    """Make a checkpoint of the files that :func:`save` has written.

    Args:
        place: their folder.
        folder: the folder of checkpoints.
        step: the step.
        companions: files to copy beside it.

    Raises:
        ValueError: the files are not valid.
    """
    values = json_data.read(place / VALUES, most=_MOST_HEADER)["values"]
    state = {name: _given(value) for name, value in values.items()} | dict(tensors(place))
    writer = AtomicWriter(
        folder, step, model_only=False, companions=companions, tensors=True, by_rank=(f"{RANDOM}.",)
    )
    dcp_save(state, storage_writer=writer, no_dist=True)


def _values(place: Path, *, weights_only: bool) -> dict[str, Any]:
    reader = SafeReader(place)
    found: dict[str, Any] = {
        name: None
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, BytesStorageMetadata)
        and not (weights_only and name.startswith("optimizer."))
    }
    if found:
        load_alone(found, reader, SafePlanner())
    return {name: _told(value) for name, value in sorted(found.items())}


def _told(value: Any) -> Any:
    """Return a value as JSON; a tuple as an object with one key."""
    if isinstance(value, tuple):
        return {"tuple": [_told(each) for each in value]}
    if isinstance(value, list):
        return [_told(each) for each in value]
    return value


def _given(value: Any) -> Any:
    if isinstance(value, dict) and list(value) == ["tuple"]:
        return tuple(_given(each) for each in value["tuple"])
    if isinstance(value, list):
        return [_given(each) for each in value]
    return value
