"""Read the index of a checkpoint (DCP's ``.metadata``, a pickle) as data only.

A pickle is a program. Here it runs on inert records: every class that the pickle names is replaced
by a new class without behaviour, made for this pickle alone, which stores its arguments. DCP's
``Metadata`` is then built from the records, with each value checked. Nothing in the pickle can
reach an object of this process.
"""

from __future__ import annotations

import gc
import io
import pickle
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

T = TypeVar("T")

FILE_NAME = ".metadata"

LARGEST = 2**32
"""Largest accepted index in bytes. With 405 B parameters on 10,240 ranks it has about 2 ** 30."""

_ROOM = 2**28
_ROOM_A_BYTE = 64
"""Memory limit for reading, in bytes per byte of index: a pickle can request far more."""


class HostileCheckpointError(Exception):
    """The checkpoint contains something other than data."""


class _Inert(type):
    """A metaclass of classes without settable attributes: a pickle may try to set them."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise HostileCheckpointError(f"its index sets {name!r} of a class")


class _Record(metaclass=_Inert):
    """An object of a pickle: its constructor arguments, and the state set on it afterwards."""

    __slots__ = ("arguments", "state")

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **named: Any) -> _Record:
        if named:
            _refuse("an object with named arguments")
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    def __init__(self, *_arguments: Any) -> None:
        """Do nothing: :meth:`__new__` has stored the arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


_METADATA = "torch.distributed.checkpoint.metadata"
_RECORDS = {
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("collections", "OrderedDict"),
}
"""Names that DCP writes into an index, by module."""

_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}


class _Unpickler(pickle.Unpickler):
    """An unpickler that makes a record of every class that the pickle names."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._classes: dict[str, type] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return self._inert(f"torch.{name}")
        if (module, name) not in _RECORDS:
            _refuse(f"{module}.{name}, which no checkpoint contains", verb="names")
        return self._inert(name)

    def _inert(self, name: str) -> type:
        # One class per pickle: if a pickle managed to change it, no other pickle would be affected.
        if name not in self._classes:
            self._classes[name] = _Inert(name, (_Record,), {"__slots__": ()})
        return self._classes[name]


def read(file: IO[bytes]) -> Metadata:
    """Return the index in ``file``.

    Raises:
        HostileCheckpointError: it is too large, or not an index of data only.
        OSError: it cannot be read.
    """
    return parse(file.read(LARGEST + 1))


def parse(content: bytes) -> Metadata:
    """Parse ``content`` as an index.

    Raises:
        HostileCheckpointError: it is too large, or not an index of data only.
    """
    if len(content) > LARGEST:
        _refuse(f"more than {LARGEST >> 30} GiB")
    try:
        with _no_collection():
            with _bounded_memory(_ROOM + _ROOM_A_BYTE * len(content)):
                found = _Unpickler(io.BytesIO(content)).load()
            return _metadata(found)
    except HostileCheckpointError:
        raise
    except (MemoryError, RecursionError):
        _refuse("more than it has bytes for")
    except Exception as error:
        # Malformed pickles raise many different exceptions.
        words = " ".join(str(error).split())[:120]
        raise HostileCheckpointError(f"its index cannot be read ({words})") from None


def _refuse(what: str, *, verb: str = "holds") -> NoReturn:
    raise HostileCheckpointError(f"its index {verb} {what}")


@contextmanager
def _bounded_memory(bytes_more: int) -> Iterator[None]:
    """Limit further memory of this process: a larger allocation raises :class:`MemoryError`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + bytes_more
    bounds = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *bounds]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection: with millions of new objects it takes a quarter of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


# ---------------------------------------------------------------------------- records to metadata


def _metadata(value: Any) -> Metadata:
    state = _state(value, "Metadata")
    tensors = _dict(state.get("state_dict_metadata"), str, _storage)
    planned = state.get("planner_data")
    stored = state.get("storage_data")
    return Metadata(
        state_dict_metadata=tensors,
        planner_data=None if planned is None else _dict(planned, str, _path),
        storage_data=None if stored is None else _dict(stored, _index, _place),
        # The writer's file locations: a reader does not need them.
        storage_meta=None,
        version=_optional(state.get("version"), str),
    )


def _storage(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if _is(value, "BytesStorageMetadata"):
        return BytesStorageMetadata()
    state = _state(value, "TensorStorageMetadata")
    return TensorStorageMetadata(
        properties=_properties(state.get("properties")),
        size=_size(state.get("size")),
        chunks=[_chunk(chunk) for chunk in _typed(state.get("chunks"), list)],
    )


def _properties(value: Any) -> TensorProperties:
    if not _is(value, "TensorProperties") or not isinstance(value.state, tuple):
        _refuse("invalid properties of a tensor")
    # The fields in between do not affect reading: layout, memory format and the like.
    dtype, _layout, _requires_grad, _memory_format, _pinned, *strides = value.state
    return TensorProperties(dtype=_dtype(dtype), strides=_strides(*strides))


def _strides(value: Any = None) -> tuple[int, ...] | None:
    return None if value is None else tuple(_natural(stride) for stride in _typed(value, tuple))


def _dtype(value: Any) -> torch.dtype:
    if isinstance(value, _Inert):
        name = value.__name__.removeprefix("torch.")
        if value.__name__ != name and name in _DTYPES:
            return _DTYPES[name]
    _refuse("an invalid dtype")


def _chunk(value: Any) -> ChunkStorageMetadata:
    state = _state(value, "ChunkStorageMetadata")
    return ChunkStorageMetadata(
        offsets=_size(state.get("offsets")), sizes=_size(state.get("sizes"))
    )


def _index(value: Any) -> MetadataIndex:
    state = _state(value, "MetadataIndex")
    offset = state.get("offset")
    return MetadataIndex(
        fqn=_typed(state.get("fqn"), str),
        offset=None if offset is None else _size(offset),
        index=_optional(state.get("index"), int),
    )


def _place(value: Any) -> _StorageInfo:
    state = _state(value, "_StorageInfo")
    if state.get("transform_descriptors"):
        _refuse("values in a compressed form, which ATOM does not write")
    name = _typed(state.get("relative_path"), str)
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise HostileCheckpointError(f"its index names {name!r}, a file outside of it")
    return _StorageInfo(name, _natural(state.get("offset")), _natural(state.get("length")))


def _path(value: Any) -> tuple[str | int, ...]:
    parts = _typed(value, tuple)
    if not all(type(part) in (str, int) for part in parts):
        _refuse("an invalid path")
    return parts


def _size(value: Any) -> torch.Size:
    if _is(value, "Size") and len(value.arguments) <= 1:
        return torch.Size(_natural(size) for size in _typed((*value.arguments, ())[0], tuple))
    _refuse("an invalid size")


# ---------------------------------------------------------------------------- checks


def _is(value: Any, name: str) -> bool:
    return isinstance(value, _Record) and type(value).__name__ == name


def _state(value: Any, name: str) -> dict[str, Any]:
    """Return the attributes of a record of class ``name``."""
    if not _is(value, name) or not isinstance(value.state, dict):
        _refuse(f"something else where a {name} belongs")
    return value.state


def _typed(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        _refuse(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _optional(value: Any, kind: type[T]) -> T | None:
    return None if value is None else _typed(value, kind)


def _natural(value: Any) -> int:
    number = _typed(value, int)
    if not 0 <= number < 2**63:
        _refuse("a size below zero or beyond 64 bits")
    return number


def _dict(value: Any, key: Callable[[Any], Any], item: Callable[[Any], Any]) -> dict[Any, Any]:
    check = (lambda name: _typed(name, str)) if key is str else key
    return {check(name): item(each) for name, each in _typed(value, dict).items()}
