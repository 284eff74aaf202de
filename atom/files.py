"""Files that other processes read while this one writes, and what is in them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` as JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


class NotAFileError(Exception):
    """What a name stands for is no regular file: a link, a folder, a pipe or a device."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read, which is not reached by a link.

    Raises:
        NotAFileError: it is something else.
        OSError: it cannot be opened.
    """
    try:
        # Without O_NONBLOCK, to open a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise NotAFileError(f"{path} is no regular file") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFileError(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb")


def sha256(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append(descriptor: int, content: bytes) -> None:
    """Write ``content`` to a file that was opened to append, whole or not at all.

    Raises:
        OSError: it could not be written; see :func:`is_full`.
    """
    written = os.write(descriptor, content)
    if written != len(content):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_full(error: OSError) -> bool:
    """Return whether a disk is full, or a user's share of it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def whole_lines(content: bytes) -> list[bytes]:
    """Return the lines that end with a newline, without it."""
    return content.split(b"\n")[:-1]
