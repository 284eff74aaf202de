"""Compressed files."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from atom.errors import UserError
from atom.files import is_regular, make_folder

_RATIO = 200
"""The most that a compressed file may grow: ten times what text does."""

_ALWAYS = 64 * 2**20
"""Bytes that any file may become: a small one of one word, again and again, harms nobody."""

SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst"})


def bare_suffix(path: Path) -> str:
    """Return the suffix of what is in ``path``: ``.jsonl`` for ``a.jsonl.gz``."""
    return (Path(path.stem) if is_compressed(path) else path).suffix.lower()


def is_compressed(path: Path) -> bool:
    """Return whether the suffix of ``path`` is that of a compressed file."""
    return path.suffix.lower() in SUFFIXES


def opened(path: Path) -> BinaryIO:
    """Open ``path`` to be read, decompressed if its suffix says so.

    Reading raises :class:`UserError` where a file becomes far more than text or tables do.
    """
    if not is_compressed(path):
        return path.open("rb")
    return io.BufferedReader(_Bounded(_decompressed(path), path), 1 << 17)


class _Bounded(io.RawIOBase):
    """A decompressed file, with an end to how much it becomes."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._left = max(_ALWAYS, path.stat().st_size * _RATIO)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        self._left -= len(content)
        if self._left < 0:
            raise UserError(
                f"{self._path} becomes more than {_RATIO} times its size when it is decompressed; "
                "valid: the file itself, decompressed, if that is meant",
                key="dataset.path",
            )
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _decompressed(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path))
        case ".xz":
            return cast(BinaryIO, lzma.open(path))
        case ".zst":
            # Unlike the package zstandard, pyarrow tells a file that was cut off from a whole one.
            import pyarrow as pa  # type: ignore[import-untyped]

            return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))
    raise AssertionError(path)


def plain(path: Path, cache: Path) -> Path:
    """Return ``path``, or a decompressed copy of it in ``cache``.

    A copy is made once for each content (path, size and time), by however many processes ask.

    Raises:
        UserError: it cannot be decompressed.
    """
    if not is_compressed(path):
        return path
    stat = path.stat()
    identity = f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    copy = cache / f"{hashlib.sha256(identity.encode()).hexdigest()}{bare_suffix(path)}"
    if is_regular(copy):
        return copy
    make_folder(cache)
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as unfinished:
        try:
            with explained(path), opened(path) as compressed:
                shutil.copyfileobj(compressed, unfinished, 1 << 20)
        except BaseException:
            Path(unfinished.name).unlink()
            raise
    # Renamed when whole, so that no process ever sees half a copy.
    Path(unfinished.name).replace(copy)
    return copy


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Tell a file that cannot be read, or is damaged, as the mistake it is."""
    try:
        yield
    except UserError:
        raise
    except PermissionError:
        raise UserError(
            f"{path} cannot be read: Permission denied; valid: files that this user may read",
            key="dataset.path",
        ) from None
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if is_compressed(path):
            problem = f"{path} cannot be decompressed: {reason.rstrip('.')}"
            raise UserError(
                f"{problem}; valid: the whole file, fetched again", key="dataset.path"
            ) from None
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be read: {reason}", key="dataset.path") from None
        raise
