"""Check that a folder of token shards is as its manifest says: quickly, or all of it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from atom.data.manifest import FILE_NAME, SUFFIXES, TOKENIZER, Shard, name_of
from atom.data.shards import DOCUMENT, MOST_ID, Array, TokenShards, reason
from atom.io import objects
from atom.io.files import open_regular
from atom.io.objects import ObjectError
from atom.io.urls import Place

_SIZED = 4096
"""Shards with sizes that are checked before a run; each one is checked as it is opened."""

_HASHED = 64 << 20
"""Bytes with content that is checked before a run."""

_REQUESTS = 16
"""Shards of a store that are checked at once."""

_BLOCK, _ROWS = 1 << 20, 1 << 16
"""Tokens and documents that are checked at once."""


def check(shards: TokenShards) -> None:
    """Check what is quick to check: the sizes of the files, and some of their content.

    Raises:
        UserError: names the file that is missing, short or changed.
    """
    count = len(shards.manifest.shards)
    _check_listed(shards)
    if isinstance(shards.folder, Path):
        for number in _spread(count, _SIZED):
            _check_sizes(shards, number)
    left, chosen = _HASHED, []
    for number in _spread(count, _SIZED):
        size = sum(shards.manifest.shards[number].sizes(shards.manifest.token_bytes))
        if size <= left:
            chosen.append(number)
            left -= size

    def check_whole(number: int) -> None:
        _check_digests(shards, number)
        _check_content(shards, number, shards.manifest.shards[number])

    if isinstance(shards.folder, Path):
        for number in chosen:
            check_whole(number)
    else:  # a store answers late, but many requests at once
        with ThreadPoolExecutor(_REQUESTS) as pool:
            list(pool.map(check_whole, chosen))


def verify(shards: TokenShards) -> Iterator[int]:
    """Check everything; yield the number of bytes checked, shard by shard.

    Raises:
        UserError: names the first file that is not as the manifest says.
    """
    check_tokenizer(shards)
    for number, shard in enumerate(shards.manifest.shards):
        _check_sizes(shards, number)
        _check_digests(shards, number)
        _check_content(shards, number, shard)
        yield sum(shard.sizes(shards.manifest.token_bytes))


def check_tokenizer(shards: TokenShards) -> None:
    """Refuse files of the tokenizer that are not as the manifest says."""
    for name, digest in shards.manifest.tokenizer.files.items():
        path = shards.folder / TOKENIZER / name
        try:
            found = _digest(shards, path)
        except OSError as error:
            raise shards.refused(f"{path}: {reason(error)}") from None
        if found != digest:
            raise shards.refused(f"{path}: is altered: its digest is not the one in {FILE_NAME}")


def _check_listed(shards: TokenShards) -> None:
    """Refuse a folder without one of the files; a store lists their sizes, too."""
    folder = shards.folder
    if isinstance(folder, Path):
        names = set(os.listdir(folder))  # noqa: PTH208 (a hundred thousand names)
        sizes = None
    elif folder.is_web:  # it has no listing
        return
    else:
        try:
            found = objects.below(folder)
        except ObjectError as error:
            raise shards.refused(str(error)) from None
        sizes = {each.url.name: each.size for each in found if each.url == folder / each.url.name}
        names = set(sizes)
    for number, shard in enumerate(shards.manifest.shards):
        wanted = shard.sizes(shards.manifest.token_bytes)
        for kind, size in zip(SUFFIXES, wanted, strict=True):
            name = name_of(number, kind)
            if name not in names:
                raise shards.refusal(number, kind, "is missing")
            if sizes is not None:
                shards.check_size(number, kind, sizes[name], size)


def _check_sizes(shards: TokenShards, number: int) -> None:
    sizes = shards.manifest.shards[number].sizes(shards.manifest.token_bytes)
    if not isinstance(shards.folder, Path):
        shards.opened(number)
        return
    for kind, size in zip(SUFFIXES, sizes, strict=True):
        path = shards.folder / name_of(number, kind)
        try:
            found = path.lstat()
        except OSError as error:
            raise shards.unreadable(number, kind, error) from None
        if not stat.S_ISREG(found.st_mode):
            raise shards.refusal(number, kind, "is no regular file")
        shards.check_size(number, kind, found.st_size, size)


def _check_digests(shards: TokenShards, number: int) -> None:
    digests = shards.manifest.shards[number].sha256
    for kind, digest in zip(SUFFIXES, digests, strict=True):
        path = shards.folder / name_of(number, kind)
        try:
            found = _digest(shards, path)
        except OSError as error:
            raise shards.unreadable(number, kind, error) from None
        if found != digest:
            raise shards.refusal(
                number, kind, f"is altered: its digest is not the one in {FILE_NAME}"
            )


def _check_content(shards: TokenShards, number: int, shard: Shard) -> None:
    """Check what a digest cannot show: that whoever wrote the shard kept to the format."""
    found = shards.opened(number)
    tokens, records, ids = found.tokens, found.records, found.ids
    before = np.zeros(1, dtype=DOCUMENT)
    for begin in range(0, len(records), _ROWS):
        block = np.concatenate([before, records[begin : begin + _ROWS]])
        _check_ends(shards, number, shard, block, begin)
        _check_ids(shards, number, block["ids"], ids[int(before[0][1]) : int(block[-1][1])])
        before = block[-1:]
    if tuple(map(int, before[0])) != (shard.tokens, shard.ids_bytes):
        raise shards.refusal(number, "documents", "its last document does not end at the end")
    size = shards.manifest.tokenizer.vocab_size
    for begin in range(0, len(tokens), _BLOCK):
        if (highest := int(tokens[begin : begin + _BLOCK].max())) >= size:
            raise shards.refusal(
                number, "tokens", f"it has the id {highest:,} of a vocabulary of {size:,}"
            )
    found.release()


def _check_ends(shards: TokenShards, number: int, shard: Shard, block: Array, first: int) -> None:
    """Check where documents end; ``block`` begins with the record before document ``first``."""
    ends = {"tokens": shard.tokens, "ids": shard.ids_bytes}
    for field, most in ends.items():
        found = block[field]
        wrong = (found[1:] < found[:-1]) | (found[1:] > most)
        if bool(wrong.any()):
            row = first + int(np.argmax(wrong))
            raise shards.refusal(number, "documents", f"document {row} ends where it cannot")


def _check_ids(shards: TokenShards, number: int, ends: Array, ids: Array) -> None:
    """Check the ids of a block of documents; ``ids`` begins at ``ends[0]``."""
    if bool((np.diff(ends) > MOST_ID).any()):
        raise shards.refusal(number, "ids", f"an id in it has more than {MOST_ID:,} bytes")
    try:
        ids.tobytes().decode()
    except UnicodeDecodeError:
        raise shards.refusal(number, "ids", "an id in it is not UTF-8") from None
    begins = ends[:-1] - ends[0]
    if bool((ids[begins[begins < len(ids)]] & 0b1100_0000 == 0b1000_0000).any()):
        raise shards.refusal(number, "ids", "an id in it ends within a character")


def _digest(shards: TokenShards, path: Place) -> str:
    """Return the digest of a file.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(path, Path):
        assert isinstance(shards.folder, Path)
        with open_regular(path, below=shards.folder) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if (found := objects.find(path)) is None:
        raise FileNotFoundError
    digest = hashlib.sha256()
    for part in objects.parts(found):
        digest.update(part)
    return digest.hexdigest()


def _spread(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the numbers below ``count``, spread over them."""
    if count <= most:
        return list(range(count))
    return [place * (count - 1) // (most - 1) for place in range(most)]
