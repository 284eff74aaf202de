"""Read and write files that other accounts may have written, linked or replaced.

All files in a run folder, an export or a cache are opened here. It follows no links, opens only
regular files, never blocks on a pipe, and reads no more bytes than the caller allows. Writes are
atomic: a temporary file with an unpredictable name replaces the old file when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from atom.errors import UserError

MOST = 8 << 20
"""Default limit on the size of a file, in bytes."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Without ``O_NONBLOCK``, opening a pipe would block until another process opens it."""


class NotAFileError(OSError):
    """Raised if a name is not a regular file: a link, a folder, a pipe or a device."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.ELOOP, "it is no regular file", str(path))

    def __str__(self) -> str:
        return f"{self.filename} is no regular file"


class TooLargeError(OSError):
    """Raised if a file exceeds the size limit of its kind."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(errno.EFBIG, f"it has more than {_size(most)}", str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


# ---------------------------------------------------------------------------- opening


def opened(path: Path, flags: int, *, below: Path | None = None) -> int:
    """Open a regular file, created if ``flags`` contain ``O_CREAT``; return its descriptor.

    Args:
        path: the file; it must not be a link.
        flags: as for :func:`os.open`.
        below: a parent folder; no folder between it and the file may be a link either.

    Raises:
        NotAFileError: it is not a regular file.
        OSError: it cannot be opened.
    """
    with _place(path, below) as (name, folder):
        try:
            descriptor = os.open(name, flags | _SAFE, 0o666, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise NotAFileError(path) from None
            error.filename = str(path)
            raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotAFileError(path)
    return descriptor


def open_regular(path: Path, *, below: Path | None = None) -> BufferedReader:
    """Open a regular file for reading: see :func:`opened`."""
    return os.fdopen(opened(path, os.O_RDONLY, below=below), "rb")


def appending(path: Path, *, below: Path | None = None) -> int:
    """Open a regular file for appending, created if missing; return its descriptor."""
    return opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, below=below)


def is_regular(path: Path) -> bool:
    """Return whether a path is a regular file, and not a link to one."""
    return modified(path) is not None


def modified(path: Path) -> float | None:
    """Return when a regular file was last written to, in seconds since the epoch; None if the path
    is no regular file, or has just gone."""
    try:
        found = path.lstat()
    except (OSError, ValueError):
        return None
    return found.st_mtime if stat.S_ISREG(found.st_mode) else None


# ---------------------------------------------------------------------------- reading


def read_bytes(path: Path, *, most: int = MOST, below: Path | None = None) -> bytes:
    """Return the content of a regular file.

    Raises:
        NotAFileError: it is not a regular file.
        TooLargeError: it has more than ``most`` bytes.
        OSError: it cannot be read.
    """
    with open_regular(path, below=below) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise TooLargeError(path, most)
        # The file can grow while it is read.
        content = file.read(most + 1)
    if len(content) > most:
        raise TooLargeError(path, most)
    return content


def read_text(path: Path, *, most: int = MOST, below: Path | None = None) -> str:
    """Return the content of a regular UTF-8 file: see :func:`read_bytes`.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most=most, below=below).decode()


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------------- writing


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str, *, private: bool = False) -> None:
    """Write ``content`` to ``path`` as UTF-8, atomically: see :func:`write_bytes`."""
    write_bytes(path, content.encode(), private=private)


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write ``content`` to ``path`` atomically.

    Args:
        path: the file; a link there is replaced.
        content: the whole content.
        private: make the file readable by its owner only.
    """
    with _unfinished(path, mode=0o600 if private else 0o666) as file:
        file.write(content)


def write_given(path: Path, content: str) -> None:
    """Write to a path that the user has named.

    A special file, such as ``/dev/stdout``, is written directly; any other path as by
    :func:`write_text`.

    Raises:
        UserError: its folder is missing, or it is a folder.
    """
    data = content.encode(errors="replace")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
        else:
            write_bytes(path, data)
    except (FileNotFoundError, IsADirectoryError) as error:
        problem = f"{path} cannot be written: {error.strerror}"
        raise UserError(problem, valid="--out FILE") from None


def copy(source: Path, target: Path, *, below: Path | None = None) -> None:
    """Copy a regular file atomically.

    Args:
        source: the file.
        target: the destination; a link there is replaced.
        below: for ``source``, as in :func:`opened`.
    """
    with open_regular(source, below=below) as content, _unfinished(target) as file:
        shutil.copyfileobj(content, file, 1 << 20)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents.

    Raises:
        NotADirectoryError: the path is a link, or not a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir()
    if not stat.S_ISDIR(path.lstat().st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is a link, or no folder", str(path))


def probe(folder: Path) -> None:
    """Check that a folder is writable by creating and removing a file in it.

    Raises:
        OSError: it is not writable.
    """
    descriptor, name = tempfile.mkstemp(prefix=".atom-write-test-", dir=folder)
    os.close(descriptor)
    Path(name).unlink()


def append(descriptor: int, content: bytes) -> None:
    """Append ``content`` to an open file, completely or not at all.

    Raises:
        OSError: it could not be written; see :func:`is_full`.
    """
    written = os.write(descriptor, content)
    if written != len(content):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_full(error: OSError) -> bool:
    """Return whether an error means that the disk or the user's quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def whole_lines(content: bytes) -> list[bytes]:
    """Return the complete lines, without their newlines."""
    return content.split(b"\n")[:-1]


# ---------------------------------------------------------------------------- places


@contextmanager
def _place(path: Path, below: Path | None) -> Iterator[tuple[str, int | None]]:
    """Yield the name of a file and a descriptor of its folder."""
    if below is None:
        yield str(path), None
        return
    *folders, name = path.relative_to(below).parts
    if ".." in (*folders, name):
        raise NotAFileError(path)
    # ``below`` itself may be a link.
    here = os.open(below, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for folder in folders:
            above = here
            try:
                here = os.open(folder, _FOLDER, dir_fd=above)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise NotAFileError(path) from None
                error.filename = str(path)
                raise
            finally:
                if here != above:
                    os.close(above)
        yield name, here
    finally:
        os.close(here)


@contextmanager
def _unfinished(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield a temporary file in the folder of ``path``, renamed to ``path`` when it is complete."""
    _check_replaceable(path)
    new = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
    try:
        with os.fdopen(os.open(new, flags, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        if error.filename == str(new):
            error.filename = str(path)
        raise
    finally:
        new.unlink(missing_ok=True)


def _check_replaceable(path: Path) -> None:
    """Raise an OSError if renaming a file to ``path`` would take a device or a folder away.

    As root, /dev/null and /dev/stdout, a link, can be replaced as well as any other name.
    """
    if path.is_dir() or not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    in_devices = path.absolute().parent in (Path("/dev"), Path("/dev/fd"))
    if in_devices or path.is_char_device() or path.is_block_device():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _size(most: int) -> str:
    units = ((30, "GiB"), (20, "MiB"), (10, "KiB"))
    return next((f"{most >> bits} {unit}" for bits, unit in units if most >> bits), f"{most} bytes")
