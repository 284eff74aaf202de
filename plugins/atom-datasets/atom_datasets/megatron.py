"""Read Megatron's indexed datasets: token ids in ``X.bin``, and their index in ``X.idx``.

The index has a header (magic, version 1, code of the type of an id, number of sequences, number of
document entries), then the length of each sequence (int32), where it begins in bytes (int64), and
the number of sequences before each document and at the end (int64). A multimodal index adds the
mode of each sequence (int8). All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from atom.errors import UserError
from atom_datasets.compression import explained
from atom_datasets.finding import open_regular
from atom_datasets.token_files import Array, Stat, TokenFile, broken, mapped

_MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOATS = {6: "float64", 7: "float32"}
_BLOCK = 1 << 20
"""Entries checked at once."""


class _Header(NamedTuple):
    """The counts of an index, checked against the size of its file."""

    dtype: np.dtype[Any]
    sequences: int
    entries: int
    modes: bool


def opened(path: Path) -> TokenFile:
    """Return the token file of an index.

    Args:
        path: the ``.idx`` file.

    Raises:
        UserError: a header or a size is invalid.
    """
    with explained(path):
        index = Stat.of(path)
    header = _header(index)
    ids = path.with_suffix(".bin")
    if not ids.is_file():
        raise UserError(
            f"{ids} is missing, which holds the tokens of {path.name}",
            valid="both files of an indexed dataset, side by side",
            key="dataset.path",
        )
    stat = Stat.of(ids)
    width = header.dtype.itemsize
    if stat.size % width:
        raise broken(ids, f"it has {stat.size:,} bytes, no multiple of the {width} of an id")
    return TokenFile(
        name=ids,
        stat=stat,
        dtype=header.dtype,
        offset=0,
        tokens=stat.size // width,
        documents=header.entries - 1,
        ends=partial(_Ends.opened, index, header, stat.size // width),
    )


def check(file: TokenFile) -> None:
    """Check the whole index of a token file.

    Raises:
        UserError: a sequence or a document is not where it must be.
    """
    ends = file.ends()
    assert isinstance(ends, _Ends)
    ends.check(file.tokens)


class _Ends(Sequence[int]):
    """The numbers of tokens up to the end of each document, computed from a mapped index."""

    def __init__(self, name: Path, header: _Header, data: Any, tokens: int) -> None:
        self._name, self._header, self._tokens = name, header, tokens
        at, count = _HEADER.size, header.sequences
        self._lengths: Array = np.frombuffer(data, "<i4", count, at)
        self._pointers: Array = np.frombuffer(data, "<i8", count, at := at + 4 * count)
        self._entries: Array = np.frombuffer(data, "<i8", header.entries, at := at + 8 * count)
        modes = count if header.modes else 0
        self._modes: Array = np.frombuffer(data, "i1", modes, at + 8 * header.entries)

    @classmethod
    def opened(cls, index: Stat, header: _Header, tokens: int) -> _Ends:
        return cls(index.path, header, mapped(index, index.path), tokens)

    def __len__(self) -> int:
        return self._header.entries - 1

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        sequence = int(self._entries[index + 1])
        if sequence == self._header.sequences:
            return self._tokens
        if not 0 <= sequence < self._header.sequences:
            raise broken(self._name, f"document {index} ends where it cannot")
        return int(self._pointers[sequence]) // self._header.dtype.itemsize

    def check(self, tokens: int) -> None:
        width, begin = self._header.dtype.itemsize, 0
        for first in range(0, len(self._lengths), _BLOCK):
            lengths = self._lengths[first : first + _BLOCK].astype(np.int64)
            if bool((wrong := lengths < 0).any()):
                number = first + int(np.argmax(wrong))
                raise broken(self._name, f"sequence {number} has a negative length")
            ends = begin + np.cumsum(lengths)
            found = self._pointers[first : first + _BLOCK]
            if bool((wrong := found != (ends - lengths) * width).any()):
                row = int(np.argmax(wrong))
                raise broken(
                    self._name,
                    f"sequence {first + row} begins at byte {int(found[row]):,}, and those before "
                    f"it end at {int(ends[row] - lengths[row]) * width:,}",
                )
            begin = int(ends[-1])
        if begin != tokens:
            change = "is truncated" if tokens < begin else "is too long"
            raise broken(
                self._name.with_suffix(".bin"),
                f"{change}: it has {tokens:,} tokens, and {self._name.name} says {begin:,}",
            )
        self._check_documents()
        if bool(self._modes.any()):
            raise broken(self._name, "it has sequences that are not text")

    def _check_documents(self) -> None:
        before = 0
        for first in range(0, len(self._entries), _BLOCK):
            entries = self._entries[first : first + _BLOCK]
            wrong = np.append(before, entries[:-1]) > entries
            wrong |= entries > self._header.sequences
            if bool(wrong.any()) or (first == 0 and int(entries[0]) != 0):
                number = max(first + int(np.argmax(wrong)) - 1, 0)
                raise broken(self._name, f"document {number} begins where it cannot")
            before = int(entries[-1])
        if before != self._header.sequences:
            raise broken(
                self._name,
                f"its documents have {before:,} of its {self._header.sequences:,} sequences",
            )


def _header(index: Stat) -> _Header:
    name, size = index.path, index.size
    with explained(name), open_regular(name) as file:
        head = file.read(_HEADER.size)
    if head[: len(_MAGIC)] != _MAGIC:
        raise broken(name, "it is no index of Megatron (it does not begin with MMIDIDX)")
    if len(head) < _HEADER.size:
        raise broken(name, "is truncated: its header is not complete")
    _, version, code, sequences, entries = _HEADER.unpack(head)
    if version != 1:
        raise UserError(f"{name} has version {version}", valid="version 1", key="dataset.path")
    if code not in _DTYPES:
        kind = _FLOATS.get(code, f"the unknown type {code}")
        raise broken(name, f"it says that token ids are {kind}")
    if entries < 1:
        raise broken(name, "it has no entries of documents")
    # Python's integers do not overflow: a count in the header is untrusted.
    plain = _HEADER.size + 12 * sequences + 8 * entries
    if size not in (plain, plain + sequences):
        change = "is truncated" if size < plain else "is too long"
        raise broken(
            name,
            f"{change}: it has {size:,} bytes, and {sequences:,} sequences and {entries - 1:,} "
            f"documents need {plain:,}",
        )
    return _Header(np.dtype(_DTYPES[code]), sequences, entries, modes=size != plain)
