"""Read documents from a folder of token shards, by number, and check the folder."""

from __future__ import annotations

import hashlib
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atom.data import manifest as manifests
from atom.data.manifest import FILE_NAME, SUFFIXES, TOKENIZER, Shard, name_of
from atom.errors import UserError
from atom.io.files import NotAFileError, open_regular, opened
from atom.plugin import Document

DOCUMENT = np.dtype([("tokens", "<u8"), ("ids", "<u8")])
"""A record of a document: where its tokens and its id end, within the shard."""

_OPEN = 4096
"""Shards kept open; Linux allows a process 65,530 maps by default."""

_SIZED = 4096
"""Shards with sizes that are checked before a run; each one is checked as it is opened."""

_HASHED = 64 << 20
"""Bytes with digests that are checked before a run."""

_BLOCK, _ROWS = 1 << 20, 1 << 16
"""Tokens and documents that are checked at once."""

MOST_ID = 4096
"""Maximum bytes of a document's id."""

Array = npt.NDArray[Any]


class TokenShards:
    """The documents of a folder of token shards, with random access.

    They are :class:`atom.plugin.Documents`.

    Args:
        folder: the folder.
        key: the key of the folder in a run, for errors; None outside of a run.
        value: the value of the key.

    Raises:
        UserError: the folder has no valid manifest.
    """

    def __init__(self, folder: Path, key: str | None = None, value: object = ...) -> None:
        self.folder = folder
        self._key, self._value = key, value
        try:
            self.manifest = manifests.read(folder)
        except UserError as error:
            error.key, error.value = key, value
            raise
        ends = accumulate(shard.documents for shard in self.manifest.shards)
        self._ends = np.fromiter(ends, dtype=np.int64, count=len(self.manifest.shards))
        self._opened = lru_cache(maxsize=_OPEN)(self._open)

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
        return self._document(number, index - int(self._ends[number]) + documents)

    def shard_sizes(self) -> list[int]:
        """Return the number of tokens of each shard."""
        return [shard.tokens for shard in self.manifest.shards]

    def between(self, number: int, begin: int, end: int) -> list[tuple[int, int, Document]]:
        """Return the documents with tokens in ``begin`` to ``end`` - 1 of a shard.

        Returns:
            For each its number in all shards, the position of its first token in the shard, and
            the document.
        """
        shard = self.manifest.shards[number]
        _, records, _ = self._opened(number)
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

    def _document(self, number: int, row: int) -> Document:
        shard = self.manifest.shards[number]
        tokens, records, ids = self._opened(number)
        first, last = (records[row - 1] if row else (0, 0)), records[row]
        begin, end = int(first[0]), int(last[0])
        id_begin, id_end = int(first[1]), int(last[1])
        if not (
            begin <= end <= shard.tokens
            and id_begin <= id_end <= min(shard.ids_bytes, id_begin + MOST_ID)
        ):
            raise self.refusal(number, "documents", f"document {row} ends where it cannot")
        try:
            id = ids[id_begin:id_end].tobytes().decode()
        except UnicodeDecodeError:
            raise self.refusal(number, "ids", f"the id of document {row} is not UTF-8") from None
        return Document("", id, tokens=tokens[begin:end])

    def _open(self, number: int) -> tuple[Array, Array, Array]:
        sizes = self.manifest.shards[number].sizes(self.manifest.token_bytes)
        maps = [
            self._mapped(number, kind, size) for kind, size in zip(SUFFIXES, sizes, strict=True)
        ]
        types = (np.dtype(self.manifest.dtype).newbyteorder("<"), DOCUMENT, np.dtype(np.uint8))
        tokens, records, ids = (
            np.frombuffer(data, dtype=kind) for data, kind in zip(maps, types, strict=True)
        )
        return tokens, records, ids

    def _mapped(self, number: int, kind: str, size: int) -> mmap.mmap | bytes:
        path = self.folder / name_of(number, kind)
        try:
            descriptor = opened(path, os.O_RDONLY, below=self.folder)
        except OSError as error:
            raise self._unreadable(number, kind, error) from None
        try:
            self._check_size(number, kind, os.fstat(descriptor).st_size, size)
            # An empty file cannot be mapped.
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) if size else b""
        finally:
            os.close(descriptor)

    # ------------------------------------------------------------------------ checks

    def check(self) -> None:
        """Check what is quick to check: the sizes of the files, and some of the digests.

        Raises:
            UserError: names the file that is missing, short or changed.
        """
        count = len(self.manifest.shards)
        names = set(os.listdir(self.folder))  # noqa: PTH208 (a hundred thousand names)
        for number in range(count):
            for kind in SUFFIXES:
                if name_of(number, kind) not in names:
                    raise self.refusal(number, kind, "is missing")
        for number in _spread(count, _SIZED):
            self._check_sizes(number)
        left = _HASHED
        for number in _spread(count, _SIZED):
            size = sum(self.manifest.shards[number].sizes(self.manifest.token_bytes))
            if size <= left:
                self._check_digests(number)
                left -= size

    def verify(self) -> Iterator[int]:
        """Check everything; yield the number of bytes checked, shard by shard.

        Raises:
            UserError: names the first file that is not as the manifest says.
        """
        self.check_tokenizer()
        for number, shard in enumerate(self.manifest.shards):
            self._check_sizes(number)
            self._check_digests(number)
            self._check_content(number, shard)
            yield sum(shard.sizes(self.manifest.token_bytes))

    def check_tokenizer(self) -> None:
        """Refuse files of the tokenizer that are not as the manifest says."""
        for name, digest in self.manifest.tokenizer.files.items():
            path = self.folder / TOKENIZER / name
            try:
                found = self._digest(path)
            except OSError as error:
                raise self._refusal(f"{path}: {_reason(error)}") from None
            if found != digest:
                raise self._refusal(f"{path}: is altered: its digest is not the one in {FILE_NAME}")

    def refusal(self, number: int, kind: str, problem: str) -> UserError:
        """Return the error of a shard's file."""
        return self._refusal(f"{self.folder / name_of(number, kind)}: {problem}")

    def _refusal(self, problem: str) -> UserError:
        return UserError(problem, key=self._key, value=self._value)

    def _check_sizes(self, number: int) -> None:
        sizes = self.manifest.shards[number].sizes(self.manifest.token_bytes)
        for kind, size in zip(SUFFIXES, sizes, strict=True):
            path = self.folder / name_of(number, kind)
            try:
                found = path.lstat()
            except OSError as error:
                raise self._unreadable(number, kind, error) from None
            if not path.is_file() or path.is_symlink():
                raise self.refusal(number, kind, "is no regular file")
            self._check_size(number, kind, found.st_size, size)

    def _check_size(self, number: int, kind: str, found: int, size: int) -> None:
        if found != size:
            change = "is truncated" if found < size else "is too long"
            raise self.refusal(
                number, kind, f"{change}: it has {found:,} bytes, and {FILE_NAME} says {size:,}"
            )

    def _check_digests(self, number: int) -> None:
        digests = self.manifest.shards[number].sha256
        for kind, digest in zip(SUFFIXES, digests, strict=True):
            path = self.folder / name_of(number, kind)
            try:
                found = self._digest(path)
            except OSError as error:
                raise self._unreadable(number, kind, error) from None
            if found != digest:
                raise self.refusal(
                    number, kind, f"is altered: its digest is not the one in {FILE_NAME}"
                )

    def _check_content(self, number: int, shard: Shard) -> None:
        """Check what a digest cannot show: that whoever wrote the shard kept to the format."""
        tokens, records, ids = self._opened(number)
        before = np.zeros(1, dtype=DOCUMENT)
        for begin in range(0, len(records), _ROWS):
            block = np.concatenate([before, records[begin : begin + _ROWS]])
            self._check_ends(number, shard, block, begin)
            self._check_ids(number, block["ids"], ids[int(before[0][1]) : int(block[-1][1])])
            before = block[-1:]
        if tuple(map(int, before[0])) != (shard.tokens, shard.ids_bytes):
            raise self.refusal(number, "documents", "its last document does not end at the end")
        size = self.manifest.tokenizer.vocab_size
        for begin in range(0, len(tokens), _BLOCK):
            if (highest := int(tokens[begin : begin + _BLOCK].max())) >= size:
                raise self.refusal(
                    number, "tokens", f"it has the id {highest:,} of a vocabulary of {size:,}"
                )

    def _check_ends(self, number: int, shard: Shard, block: Array, first: int) -> None:
        """Check where documents end; ``block`` begins with the record before document ``first``."""
        ends = {"tokens": shard.tokens, "ids": shard.ids_bytes}
        for field, most in ends.items():
            found = block[field]
            wrong = (found[1:] < found[:-1]) | (found[1:] > most)
            if bool(wrong.any()):
                row = first + int(np.argmax(wrong))
                raise self.refusal(number, "documents", f"document {row} ends where it cannot")

    def _check_ids(self, number: int, ends: Array, ids: Array) -> None:
        """Check the ids of a block of documents; ``ids`` begins at ``ends[0]``."""
        if bool((np.diff(ends) > MOST_ID).any()):
            raise self.refusal(number, "ids", f"an id in it has more than {MOST_ID:,} bytes")
        try:
            ids.tobytes().decode()
        except UnicodeDecodeError:
            raise self.refusal(number, "ids", "an id in it is not UTF-8") from None
        begins = ends[:-1] - ends[0]
        if bool((ids[begins[begins < len(ids)]] & 0b1100_0000 == 0b1000_0000).any()):
            raise self.refusal(number, "ids", "an id in it ends within a character")

    def _digest(self, path: Path) -> str:
        with open_regular(path, below=self.folder) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _unreadable(self, number: int, kind: str, error: OSError) -> UserError:
        return self.refusal(number, kind, _reason(error))


@lru_cache(maxsize=4)
def open_shards(folder: Path, key: str, value: str) -> TokenShards:
    """Return the shards of a folder; a process reads a manifest once."""
    return TokenShards(folder, key, value)


def _spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers below ``count``, spread over them."""
    if count <= most:
        return list(range(count))
    return [place * (count - 1) // (most - 1) for place in range(most)]


def _reason(error: OSError) -> str:
    if isinstance(error, NotAFileError):
        return "is no regular file"
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read: {error.strerror}"
