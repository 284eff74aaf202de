"""Read flat files of token ids: ``X.npy`` as OLMo-core and Dolma write it, with ``X.csv.gz``.

Despite its suffix such a file has no header: it is the ids alone, little-endian. A file that does
have numpy's header is read, too. ``X.csv.gz`` has a line for each document, which begins with the
positions of its first token and of the one after its last. Without it, documents end with an id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from atom.errors import UserError
from atom_datasets.compression import Budget, explained
from atom_datasets.compression import opened as decompressed
from atom_datasets.finding import open_regular
from atom_datasets.kept import derived
from atom_datasets.token_files import Array, Stat, TokenFile, broken, mapped

_MAGIC = b"\x93NUMPY"
_HEADER = 4096
"""Maximum bytes of numpy's header, which has a few dozen."""

_BLOCK = 1 << 22
"""Ids read at once."""

_LINE = 1 << 16
"""Maximum bytes of a line of metadata."""

_LOOKED_AT, _FEWEST = 1 << 16, 64
"""Ids that are looked at to tell a wrong type, at most and at least."""

_HALF, _TOO_MANY = 16, 1 << 24
"""No vocabulary has so many ids that the upper halves of wider ids are 16, or 2²⁴ ids."""


def metadata(path: Path) -> Path:
    """Return the path of the metadata of a file of ids."""
    return path.with_suffix(".csv.gz")


def opened(
    path: Path, dtype: str | None, eos_id: int | None, cache: Path, max_bytes: int | None
) -> TokenFile:
    """Return the token file of flat ids.

    Args:
        path: the file.
        dtype: the type of an id, for a file without a header.
        eos_id: the last id of each document, for a file without metadata.
        cache: a folder for the positions of documents.
        max_bytes: maximum decompressed bytes of the metadata; None: the default of
            :class:`atom_datasets.compression.Budget`.

    Raises:
        UserError: the type is unknown or wrong, or the positions are.
    """
    with explained(path):
        stat = Stat.of(path)
        kind, offset = _type(path, dtype)
    width = kind.itemsize
    if (stat.size - offset) % width:
        raise UserError(
            f"{path} has {stat.size - offset:,} bytes of ids, no multiple of the {width} bytes of "
            f"{kind.name}",
            valid="the type that the file was written with, and a complete copy of the file",
            key="dataset.path" if dtype is None else "dataset.dtype",
            value=... if dtype is None else dtype,
        )
    tokens = (stat.size - offset) // width
    if offset == 0:
        _check_type(path, kind)
    beside = metadata(path)
    recipe: list[object]
    if beside.is_file():
        described = Stat.of(beside)
        budget = Budget(described.size, max_bytes)
        sources, recipe = [stat, described], ["metadata", kind.str]
        write = partial(_write_described, beside, tokens, budget)
    elif eos_id is not None:
        sources, recipe = [stat], [eos_id, kind.str, offset]
        write = partial(_write_cut, stat, kind, offset, eos_id)
    else:
        raise UserError(
            f"{path} has no {beside.name} beside it, which says where its documents end",
            valid="that file, or dataset.eos_id, the last id of each document",
            key="dataset.path",
        )
    (kept,) = derived(cache, sources, recipe, ["ends"], write)
    ends = Stat.of_copy(kept)
    documents = ends.size // 8
    last = int(_ends(ends, path)[-1]) if documents else 0
    return TokenFile(path, stat, kind, offset, last, documents, partial(_ends, ends, path))


def rest(file: TokenFile) -> int:
    """Return the number of ids after the last document."""
    return (file.stat.size - file.offset) // file.dtype.itemsize - file.tokens


def _ends(kept: Stat, name: Path) -> Sequence[int]:
    found: Any = np.frombuffer(mapped(kept, name), dtype="<i8")
    return found  # an array is a sequence, but does not say so


# ---------------------------------------------------------------------------- types


def _type(path: Path, given: str | None) -> tuple[np.dtype[Any], int]:
    """Return the type of an id, and the bytes before the first."""
    with open_regular(path) as file:
        head = file.read(_HEADER)
    if not head.startswith(_MAGIC):
        if given is None:
            raise UserError(
                f"{path} does not say the type of its ids",
                valid="dataset.dtype=uint16 for most vocabularies of up to 65,536 ids, or uint32",
                key="dataset.path",
            )
        return np.dtype(given).newbyteorder("<"), 0
    kind, shape, offset = _header(path, head)
    if kind.kind not in "iu" or len(shape) != 1:
        raise broken(path, f"it is an array of {kind.name} of shape {shape}, not a list of ids")
    if given is not None and kind.name != given:
        raise UserError(
            f"{path} says that its ids are {kind.name}",
            valid=f"{kind.name}, or leave it out",
            key="dataset.dtype",
            value=given,
        )
    if offset + shape[0] * kind.itemsize != (size := path.stat().st_size):
        raise broken(path, f"it has {size:,} bytes, and its header says {shape[0]:,} ids")
    return kind, offset


def _header(path: Path, head: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    import io

    from numpy.lib import format as npy

    stream = io.BytesIO(head)
    try:
        version = npy.read_magic(stream)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, _, kind = read(stream, max_header_size=_HEADER)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError):
        raise broken(path, "its header of numpy is damaged, or of an unknown version") from None
    return kind, shape, stream.tell()


def _check_type(path: Path, kind: np.dtype[Any]) -> None:
    """Refuse ids that look like halves of wider ones, or like two narrower ones together.

    The loader could not tell halves, which are in the vocabulary, from other ids.
    """
    with open_regular(path) as file:
        data = file.read(_LOOKED_AT * kind.itemsize)
    ids = np.frombuffer(data, kind, len(data) // kind.itemsize)
    if len(ids) < _FEWEST:
        return
    low, high, bits = ids[::2], ids[1::2], 8 * kind.itemsize
    if kind.itemsize < 8 and int(high.max()) < _HALF <= int(low.max()):
        problem, other = f"every second id of {path} is below {_HALF}", f"uint{2 * bits}"
    elif float(np.median(ids)) >= _TOO_MANY:
        problem, other = f"most ids of {path} are above {_TOO_MANY:,}", f"uint{bits // 2}"
    else:
        return
    raise UserError(
        f"{problem}, as if it were of another type",
        valid=f"{other}, if the file was written with it",
        key="dataset.dtype",
        value=kind.name,
    )


# ---------------------------------------------------------------------------- documents


def _write_cut(
    stat: Stat, kind: np.dtype[Any], offset: int, eos_id: int, files: Sequence[BinaryIO]
) -> None:
    """Write where documents end that end with an id; a rest without it is a document, too."""
    ids: Array = np.frombuffer(mapped(stat, stat.path), dtype=kind, offset=offset)
    last = 0
    for first in range(0, len(ids), _BLOCK):
        ends = np.flatnonzero(ids[first : first + _BLOCK] == eos_id) + first + 1
        files[0].write(ends.astype("<i8").tobytes())
        last = int(ends[-1]) if len(ends) else last
    if len(ids) and not last:
        raise UserError(
            f"{stat.path} does not contain this id",
            valid="the last id of each document",
            key="dataset.eos_id",
            value=eos_id,
        )
    if last < len(ids):
        files[0].write(np.array([len(ids)], dtype="<i8").tobytes())


def _write_described(path: Path, tokens: int, budget: Budget, files: Sequence[BinaryIO]) -> None:
    """Write where documents end, from their metadata."""
    before = 0
    with explained(path):
        for number, line in enumerate(_lines(path, budget), 1):
            begin, end = _positions(path, number, line)
            if begin != before:
                raise broken(
                    path,
                    f"line {number}: the document begins at {begin:,}, and the one before it ends "
                    f"at {before:,}",
                )
            if not begin <= end <= tokens:
                raise broken(
                    path,
                    f"line {number}: the document ends at {end:,}, and its file has {tokens:,} "
                    "tokens of this type",
                )
            files[0].write(end.to_bytes(8, "little"))
            before = end
    if tokens and not before:
        raise broken(path, "it describes no document with tokens")


def _lines(path: Path, budget: Budget) -> Iterator[bytes]:
    """Yield the beginnings of lines; a quoted field can contain line ends."""
    with decompressed(path, budget) as stream:
        quotes = 0
        while line := stream.readline(_LINE):
            if quotes % 2 == 0 and line.strip():
                yield line
            quotes += line.count(b'"')
            if not line.endswith(b"\n"):
                while (more := stream.readline(_LINE)) and not more.endswith(b"\n"):
                    quotes += more.count(b'"')
                quotes += more.count(b'"')


def _positions(path: Path, number: int, line: bytes) -> tuple[int, int]:
    fields = line[:64].split(b",", 2)
    try:
        begin, end = (int(field) for field in fields[:2])
    except ValueError:
        raise broken(
            path, f"line {number} does not begin with the two positions of a document"
        ) from None
    if len(fields) < 2 or begin < 0:
        raise broken(path, f"line {number} does not begin with the two positions of a document")
    return begin, end
