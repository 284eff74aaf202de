"""Read documents that are stored as token ids, one after another, in memory-mapped files."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atom.errors import UserError
from atom.io.copied_urls import shown
from atom.plugin import Document
from atom_datasets.finding import open_regular

Array = npt.NDArray[Any]

_OPEN = 4096
"""Files kept open; Linux allows a process 65,530 maps by default."""


@dataclass(frozen=True)
class Stat:
    """A file as it was found; it must not change during a run.

    Attributes:
        path: the file.
        size: its size in bytes.
        mtime: its modification time in nanoseconds; None if it does not matter.
        inode: its inode.
    """

    path: Path
    size: int
    mtime: int | None
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stat:
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ino)

    @classmethod
    def of_copy(cls, path: Path) -> Stat:
        """Return that of a file in the cache, which another process can replace by its like."""
        return replace(cls.of(path), mtime=None)


@dataclass(frozen=True)
class TokenFile:
    """A file of token ids.

    Attributes:
        name: its name in messages and ids of documents.
        stat: the file that holds the ids; a cached copy for Parquet.
        dtype: the type of an id.
        offset: bytes before the first id.
        tokens: number of ids up to the end of the last document.
        documents: number of documents.
        ends: opens the sequence of the numbers of ids up to the end of each document.
    """

    name: Path
    stat: Stat
    dtype: np.dtype[Any]
    offset: int
    tokens: int
    documents: int
    ends: Callable[[], Sequence[int]]


class TokenFiles:
    """The documents of token files, with random access.

    They are :class:`atom.plugin.StoredTokens`; each file is a shard.
    """

    def __init__(self, files: Sequence[TokenFile]) -> None:
        self.files = tuple(files)
        self._last = list(accumulate(file.documents for file in self.files))
        self._opened = lru_cache(maxsize=_OPEN)(self._open)

    def __len__(self) -> int:
        return self._last[-1] if self._last else 0

    def __getitem__(self, index: int) -> Document:
        """Return a document, with its tokens and without text.

        Raises:
            UserError: its file has changed, or its index is invalid.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._last, index)
        return self._document(number, index - self._before(number))

    def shard_sizes(self) -> list[int]:
        """Return the number of tokens of each file."""
        return [file.tokens for file in self.files]

    def between(self, number: int, begin: int, end: int) -> list[tuple[int, int, Document]]:
        """Return the documents with tokens in ``begin`` to ``end`` - 1 of a file.

        Returns:
            For each its number in all files, the position of its first token in the file, and the
            document.
        """
        _, ends = self._opened(number)
        row = bisect_right(ends, begin)
        first = int(ends[row - 1]) if row else 0
        found = []
        while row < self.files[number].documents and first < end:
            document = self._document(number, row)
            if len(document.tokens):
                found.append((self._before(number) + row, first, document))
            first += len(document.tokens)
            row += 1
        return found

    def _before(self, number: int) -> int:
        return self._last[number] - self.files[number].documents

    def _document(self, number: int, row: int) -> Document:
        file = self.files[number]
        tokens, ends = self._opened(number)
        begin, end = int(ends[row - 1]) if row else 0, int(ends[row])
        if not 0 <= begin <= end <= file.tokens:
            raise broken(file.name, f"document {row} ends where it cannot")
        return Document("", f"{shown(file.name)}#{row}", tokens=tokens[begin:end])

    def _open(self, number: int) -> tuple[Array, Sequence[int]]:
        file = self.files[number]
        data = mapped(file.stat, file.name)
        if isinstance(data, mmap.mmap):
            # Documents are read in random order: without this the system reads up to megabytes
            # around each one.
            data.madvise(mmap.MADV_RANDOM)
        tokens = np.frombuffer(data, dtype=file.dtype, count=file.tokens, offset=file.offset)
        return tokens, file.ends()


def mapped(stat: Stat, name: Path) -> mmap.mmap | bytes:
    """Return the content of a file, mapped into memory.

    Raises:
        UserError: it cannot be read, or has changed since ``stat``.
    """
    try:
        with open_regular(stat.path) as file:
            now = os.fstat(file.fileno())
            if now.st_size != stat.size or stat.mtime not in (None, now.st_mtime_ns):
                raise UserError(
                    f"{shown(name)} has changed under the run",
                    valid="files that do not change during a run",
                    key="dataset.path",
                )
            # An empty file cannot be mapped.
            return (
                mmap.mmap(file.fileno(), stat.size, access=mmap.ACCESS_READ) if stat.size else b""
            )
    except OSError as error:
        raise broken(name, f"cannot be read: {error.strerror or error}") from None


def broken(name: Path, problem: str) -> UserError:
    """Return the error of a file that is not as its format requires."""
    return UserError(
        f"{shown(name)}: {problem}", valid="a complete copy of the file", key="dataset.path"
    )
