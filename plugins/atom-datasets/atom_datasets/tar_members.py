"""Read WebDataset's tar archives: each member with the extension ``json`` is a record.

Members are read in order and never extracted; their names are used in reports only.
"""

from __future__ import annotations

import codecs
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from atom.errors import UserError
from atom_datasets import json_lines
from atom_datasets.json_lines import RECORD, Row

NO_RECORDS = "members of archives that are not JSON"

_HEADER = 1 << 20
"""Maximum bytes of a header; an extended one says its own size."""

_PADDING = 1 << 20
"""Maximum bytes of padding after the end mark; tar writes 10 KiB."""


def read(stream: BinaryIO, name: object, text_field: str | None) -> Iterator[Row]:
    """Yield the records of an archive, numbered by their members, and its other members.

    Args:
        stream: the archive, decompressed; it can seek.
        name: the archive's name in messages.
        text_field: the field to read; None: all, as JSON.

    Raises:
        UserError: it is no tar archive, or is truncated or damaged.
    """
    try:
        archive = tarfile.open(fileobj=cast(BinaryIO, _Headers(stream)), mode="r:")  # noqa: SIM115
    except (tarfile.TarError, RecursionError) as error:
        raise _damaged(name, f"is no tar archive ({error})") from None
    number, last = 0, -1
    while (member := _following(archive, last, name)) is not None:
        last = member.offset
        if member.isdir():
            continue
        number += 1
        if not member.isreg() or member.issparse() or _extension(member.name) != "json":
            yield Row(number, other=member.name.encode("utf-8", "replace").decode())
            continue
        if member.size > RECORD:
            yield json_lines.bad(
                number, name, f"it has more than {RECORD >> 20} MiB", unit="member"
            )
            continue
        stream.seek(member.offset_data)
        data = stream.read(member.size)
        if len(data) < member.size:
            raise _damaged(name, f"is truncated within member {number}")
        yield json_lines.row(
            number, data.removeprefix(codecs.BOM_UTF8), name, text_field, unit="member"
        )
    _check_end(stream, archive.offset, name)


class _Headers:
    """A stream as tarfile reads it: for headers only, which are small."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header has more than {_HEADER >> 20} MiB")
        return self._stream.read(size)


def _following(archive: Any, last: int, name: object) -> tarfile.TarInfo | None:
    """Return the member after the one at ``last``, or None at the end."""
    try:
        member: tarfile.TarInfo | None = archive.next()
    except (tarfile.TarError, RecursionError, ValueError, OverflowError) as error:
        raise _damaged(name, f"is truncated or damaged ({error})") from None
    archive.members.clear()  # it would keep all of them
    if member is not None and (member.size < 0 or member.offset <= last):
        raise _damaged(name, "has a member of negative size")
    return member


def _check_end(stream: BinaryIO, offset: int, name: object) -> None:
    """Refuse an archive with no end mark where its members end; tarfile takes any block for it."""
    stream.seek(offset)
    rest = stream.read(_PADDING)
    if len(rest) < tarfile.BLOCKSIZE:
        raise _damaged(name, "is truncated: it has no end mark")
    if any(rest[: tarfile.BLOCKSIZE]):
        raise _damaged(name, f"is damaged: byte {offset:,} begins no member")
    if any(rest) or stream.read(1):
        raise UserError(
            f"{name} has more after its end mark",
            valid="one archive per file (tar --concatenate joins archives)",
            key="dataset.path",
        )


def _extension(name: str) -> str:
    """Return what follows the first dot of a file's name, as WebDataset divides names."""
    return PurePosixPath(name).name.partition(".")[2].lower()


def _damaged(name: object, problem: str) -> UserError:
    return UserError(f"{name} {problem}", valid="a complete copy of the file", key="dataset.path")
