"""Read compressed files with a limit on their decompressed size."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from atom.errors import UserError
from atom.io.files import is_regular, make_folder
from atom_datasets.finding import open_regular

_RATIO = 200
"""Maximum ratio of decompressed to compressed size: ten times that of text."""

_ALWAYS = 64 * 2**20
"""Decompressed bytes that are always allowed: a small, very repetitive dataset does no harm."""

SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst", ".zstd"})


def bare_suffix(path: Path) -> str:
    """Return the suffix below the compression: ``.jsonl`` for ``a.jsonl.gz``."""
    return (Path(path.stem) if is_compressed(path) else path).suffix.lower()


def is_compressed(path: Path) -> bool:
    """Return whether ``path`` has the suffix of a compressed file."""
    return path.suffix.lower() in SUFFIXES


class Budget:
    """A shared limit on the decompressed bytes of files.

    Args:
        compressed: their compressed size in bytes.
        most: maximum decompressed bytes; None: 200 times the compressed size, and at least 64 MiB.
    """

    def __init__(self, compressed: int, most: int | None) -> None:
        self._most = most
        self._left = max(_ALWAYS, compressed * _RATIO) if most is None else most

    def use(self, size: int, name: object) -> None:
        """Count ``size`` more bytes of the file ``name``.

        Raises:
            UserError: the limit is exceeded.
        """
        self._left -= size
        if self._left >= 0:
            return
        if self._most is None:
            raise UserError(
                f"{name} decompresses to more than {_RATIO} times its size",
                valid="dataset.max_bytes, the maximum decompressed bytes, if that is intended",
                key="dataset.path",
            )
        raise UserError(
            f"{name} decompresses to more bytes", key="dataset.max_bytes",
            value=self._most,
        )  # fmt: skip


def budget(files: Iterable[Path], most: int | None) -> Budget:
    """Return the budget of the compressed files among ``files``."""
    return Budget(sum(path.stat().st_size for path in files if is_compressed(path)), most)


def opened(path: Path, left: Budget | None = None) -> BinaryIO:
    """Open ``path`` for reading, decompressed if its suffix says so.

    Args:
        path: the file.
        left: the budget to use; None: a budget for this file alone.

    Reading raises :class:`UserError` when the budget is exceeded.
    """
    if not is_compressed(path):
        return open_regular(path)
    file = open_regular(path)
    stream = _decompressed(file, path.suffix.lower())
    return bounded(stream, path, left or budget([path], None), below=file)


def bounded(
    stream: BinaryIO, name: object, left: Budget, below: BinaryIO | None = None
) -> BinaryIO:
    """Return a decompressed file that draws on the budget; closing it closes ``below``."""
    return io.BufferedReader(_Bounded(stream, name, left, below), 1 << 17)


class _Bounded(io.RawIOBase):
    def __init__(
        self, stream: BinaryIO, name: object, left: Budget, below: BinaryIO | None
    ) -> None:
        self._stream, self._name, self._budget, self._below = stream, name, left, below
        self._at = self._furthest = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        self._moved(self._at + len(content))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._moved(self._stream.seek(offset, whence))
        return self._at

    def _moved(self, place: int) -> None:
        self._at = place
        if place > self._furthest:
            self._budget.use(place - self._furthest, self._name)
            self._furthest = place

    def close(self) -> None:
        self._stream.close()
        if self._below is not None:
            self._below.close()
        super().close()


def _decompressed(file: BinaryIO, suffix: str) -> BinaryIO:
    match suffix:
        case ".gz":
            return cast(BinaryIO, gzip.open(file))
        case ".bz2":
            return cast(BinaryIO, bz2.open(file))
        case ".xz":
            return cast(BinaryIO, lzma.open(file))
        case ".zst" | ".zstd":
            # Unlike the package zstandard, pyarrow detects a truncated file.
            import pyarrow as pa  # type: ignore[import-untyped]

            return cast(BinaryIO, pa.input_stream(file, compression="zstd"))
    raise AssertionError(suffix)


def let_streams_decompress() -> None:
    """Make fsspec, which opens streams, decompress zstd as :func:`opened` does.

    By default it uses the package zstandard, if installed, which reads a truncated file without an
    error.
    """
    from fsspec.compression import register_compression  # type: ignore[import-untyped]

    register_compression("zstd", _zstd_stream, ["zst"], force=True)


def _zstd_stream(stream: BinaryIO, **_: Any) -> BinaryIO:
    import pyarrow as pa

    raw = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    return io.BufferedReader(raw, 1 << 17)


def plain(path: Path, cache: Path, left: Budget) -> Path:
    """Return ``path``, or a decompressed copy of it in ``cache``.

    A copy is made once per content (path, size and time), even if several processes request it.

    Raises:
        UserError: it cannot be decompressed, or exceeds the budget.
    """
    if not is_compressed(path):
        return path
    stat = path.stat()
    identity = f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    copy = cache / f"{hashlib.sha256(identity.encode()).hexdigest()}{bare_suffix(path)}"
    if is_regular(copy):
        left.use(copy.stat().st_size, path)
        return copy
    make_folder(cache)
    with tempfile.NamedTemporaryFile(dir=cache, delete=False) as unfinished:
        try:
            with explained(path), opened(path, left) as compressed:
                shutil.copyfileobj(compressed, unfinished, 1 << 20)
        except BaseException:
            Path(unfinished.name).unlink()
            raise
    # Renamed when complete, so that no process ever sees a partial copy.
    Path(unfinished.name).replace(copy)
    return copy


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Report an unreadable or damaged file as a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except PermissionError:
        raise UserError(
            f"{path} cannot be read: Permission denied",
            valid="files that this user may read",
            key="dataset.path",
        ) from None
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if is_compressed(path):
            problem = f"{path} cannot be decompressed: {reason.rstrip('.')}"
            raise UserError(
                f"{problem}", valid="a complete copy of the file", key="dataset.path"
            ) from None
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be read: {reason}", key="dataset.path") from None
        raise
