"""Read documents from a folder of token shards, by number."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atom.data import manifest as manifests
from atom.data.manifest import FILE_NAME, SUFFIXES, TOKENIZER, name_of
from atom.data.object_array import ObjectArray
from atom.errors import UserError
from atom.io import object_cache, objects
from atom.io.files import NotAFileError, opened
from atom.io.objects import ObjectError
from atom.io.urls import Place, Url
from atom.plugin import Document

DOCUMENT = np.dtype([("tokens", "<u8"), ("ids", "<u8")])
"""A record of a document: where its tokens and its id end, within the shard."""

_OPEN = 4096
"""Shards that a process keeps open, of all folders; Linux allows it 65,530 maps by default."""

_AROUND, _RESIDENT = 4 << 20, 128 << 20
"""Bytes of a shard that reading a document maps at most, and bytes that may be mapped in all.

The kernel maps up to 2 MiB around each byte that is read, and counts them as the process's memory.
"""

_LONG = 1 << 14
"""Bytes from which on the tokens of a document are read ahead."""

MOST_ID = 4096
"""Maximum bytes of a document's id."""

Array = npt.NDArray[Any]


class OpenShard(NamedTuple):
    """The files of a shard: mapped ones, or objects of a store, which have no ``maps``."""

    maps: tuple[mmap.mmap | bytes, ...]
    tokens: Array | ObjectArray
    records: Array | ObjectArray
    ids: Array | ObjectArray
    size: int

    def read_ahead(self, begin: int, end: int) -> None:
        """Ask the system to read tokens ``begin`` to ``end`` - 1 at once, not page by page."""
        if not self.maps:
            return
        data = self.maps[0]
        assert isinstance(data, mmap.mmap)
        first = begin * self.tokens.itemsize
        first -= first % mmap.PAGESIZE
        data.madvise(mmap.MADV_WILLNEED, first, end * self.tokens.itemsize - first)

    def release(self) -> None:
        """Leave what has been read to the system's cache; arrays stay valid."""
        for data in self.maps:
            if isinstance(data, mmap.mmap):
                data.madvise(mmap.MADV_DONTNEED)


class TokenShards:
    """The documents of a folder of token shards, with random access.

    They are :class:`atom.plugin.Documents`.

    Args:
        folder: the folder, on disk or in a store.
        key: the key of the folder in a run, for errors; None outside of a run.
        value: the value of the key.

    Raises:
        UserError: the folder has no valid manifest.
    """

    def __init__(self, folder: Place, key: str | None = None, value: object = ...) -> None:
        self.folder = folder
        self._key, self._value = key, value
        try:
            self.manifest = manifests.read(folder)
        except UserError as error:
            error.key, error.value = key, value
            raise
        ends = accumulate(shard.documents for shard in self.manifest.shards)
        self._ends = np.fromiter(ends, dtype=np.int64, count=len(self.manifest.shards))
        self._sizes = np.array([shard.tokens for shard in self.manifest.shards], dtype=np.int64)
        self._sizes.setflags(write=False)
        self._read: dict[int, int] = {}
        """Shards read since the last release -> bytes of them that may be mapped."""
        self._resident = 0
        """The sum of those bytes."""

    def __len__(self) -> int:
        return self.manifest.documents

    def __getitem__(self, index: int) -> Document:
        """Return a document, with its tokens and without text.

        Raises:
            UserError: its shard is not as the manifest says.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        documents = self.manifest.shards[number].documents
        row = index - int(self._ends[number]) + documents
        return self._document(number, row, ahead=True)

    def shard_sizes(self) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each shard."""
        return self._sizes

    def opened(self, number: int) -> OpenShard:
        """Return a shard, from those kept open or opened now."""
        return _opened(self, number)

    def between(self, number: int, begin: int, end: int) -> list[tuple[int, int, Document]]:
        """Return the documents with tokens in ``begin`` to ``end`` - 1 of a shard.

        Returns:
            For each its number in all shards, the position of its first token in the shard, and
            the document.
        """
        shard = self.manifest.shards[number]
        records = self.opened(number).records
        before = int(self._ends[number]) - shard.documents
        # Not numpy's search, which copies a field of records.
        row = bisect_right(records, begin, key=lambda record: int(record[0]))
        first = int(records[row - 1][0]) if row else 0
        found = []
        while row < shard.documents and first < end:
            document = self._document(number, row)
            if len(document.tokens):
                found.append((before + row, first, document))
            first += len(document.tokens)
            row += 1
        return found

    def _document(self, number: int, row: int, *, ahead: bool = False) -> Document:
        shard = self.manifest.shards[number]
        found = self._to_be_read(number)
        records = found.records
        first, last = (records[row - 1] if row else (0, 0)), records[row]
        begin, end = int(first[0]), int(last[0])
        id_begin, id_end = int(first[1]), int(last[1])
        if not (
            begin <= end <= shard.tokens
            and id_begin <= id_end <= min(shard.ids_bytes, id_begin + MOST_ID)
        ):
            raise self.refusal(number, "documents", f"document {row} ends where it cannot")
        try:
            id = found.ids[id_begin:id_end].tobytes().decode()
        except UnicodeDecodeError:
            raise self.refusal(number, "ids", f"the id of document {row} is not UTF-8") from None
        tokens = found.tokens[begin:end]
        if ahead and tokens.nbytes >= _LONG:
            found.read_ahead(begin, end)
        return Document("", id, tokens=tokens)

    def _to_be_read(self, number: int) -> OpenShard:
        found, before = self.opened(number), self._read.get(number, 0)
        self._read[number] = now = min(before + _AROUND, found.size)
        self._resident += now - before
        if self._resident > _RESIDENT:
            for each in self._read:
                self.opened(each).release()
            self._read, self._resident = {}, 0
        return found

    def open(self, number: int) -> OpenShard:
        """Open a shard.

        Raises:
            UserError: a file is not as the manifest says.
        """
        sizes = self.manifest.shards[number].sizes(self.manifest.token_bytes)
        if isinstance(self.folder, Url):
            dtypes = (self._dtype, DOCUMENT, np.dtype(np.uint8))
            arrays = [
                self._object(number, kind, size, dtype)
                for kind, size, dtype in zip(SUFFIXES, sizes, dtypes, strict=True)
            ]
            return OpenShard((), arrays[0], arrays[1], arrays[2], sum(sizes))
        maps = tuple(
            self._mapped(number, kind, size) for kind, size in zip(SUFFIXES, sizes, strict=True)
        )
        data, records, ids = maps
        return OpenShard(
            maps,
            np.frombuffer(data, dtype=self._dtype),
            np.frombuffer(records, dtype=DOCUMENT),
            np.frombuffer(ids, dtype=np.uint8),
            sum(sizes),
        )

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(self.manifest.dtype).newbyteorder("<")

    def _object(self, number: int, kind: str, size: int, dtype: np.dtype[Any]) -> ObjectArray:
        assert isinstance(self.folder, Url)
        try:
            found = objects.find(self.folder / name_of(number, kind))
        except ObjectError as error:
            raise self.refused(str(error)) from None
        if found is None:
            raise self.refusal(number, kind, "is missing")
        self.check_size(number, kind, found.size, size)
        return ObjectArray(found, dtype, self.refused)

    def _mapped(self, number: int, kind: str, size: int) -> mmap.mmap | bytes:
        assert isinstance(self.folder, Path)
        path = self.folder / name_of(number, kind)
        try:
            descriptor = opened(path, os.O_RDONLY, below=self.folder)
        except OSError as error:
            raise self.unreadable(number, kind, error) from None
        try:
            self.check_size(number, kind, os.fstat(descriptor).st_size, size)
            if size == 0:  # it cannot be mapped
                return b""
            mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
            # Documents are read in random order: without this the system reads up to megabytes
            # around each one.
            mapped.madvise(mmap.MADV_RANDOM)
            return mapped
        finally:
            os.close(descriptor)

    def check_size(self, number: int, kind: str, found: int, size: int) -> None:
        """Refuse a file that has not the size that the manifest says."""
        if found != size:
            change = "is truncated" if found < size else "is too long"
            raise self.refusal(
                number, kind, f"{change}: it has {found:,} bytes, and {FILE_NAME} says {size:,}"
            )

    def unreadable(self, number: int, kind: str, error: OSError) -> UserError:
        """Return the error of a shard's file that cannot be opened."""
        return self.refusal(number, kind, reason(error))

    def refusal(self, number: int, kind: str, problem: str) -> UserError:
        """Return the error of a shard's file."""
        return self.refused(f"{self.folder / name_of(number, kind)}: {problem}")

    def refused(self, problem: str) -> UserError:
        """Return an error that names the key of the folder."""
        return UserError(problem, key=self._key, value=self._value)


@lru_cache(maxsize=_OPEN)
def _opened(shards: TokenShards, number: int) -> OpenShard:
    return shards.open(number)


@cache  # a mixture may have a thousand
def open_shards(folder: Place, key: str, value: str) -> TokenShards:
    """Return the shards of a folder; a process reads a manifest once."""
    return TokenShards(folder, key, value)


def tokenizer_folder(folder: Place, names: Iterable[str]) -> Path:
    """Return the folder of the tokenizer's files; those of a store are copied.

    Raises:
        UserError: the store does not answer.
    """
    if isinstance(folder, Path):
        return folder / TOKENIZER
    try:
        for name in names:
            object_cache.shared().copy_at(folder / TOKENIZER / name)
    except ObjectError as error:
        raise UserError(str(error)) from None
    return object_cache.shared().folder(folder / TOKENIZER)


def reason(error: OSError) -> str:
    """Return in words why a file cannot be opened."""
    if isinstance(error, NotAFileError):
        return "is no regular file"
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, ObjectError):
        return str(error.strerror)
    return f"cannot be read: {error.strerror}"
