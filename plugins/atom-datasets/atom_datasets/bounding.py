"""Limit the decompressed size of files that ``datasets`` opens.

It opens them with the filesystems of ``fsspec``, one for each compression. The limits are those of
:mod:`atom_datasets.compression`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, BinaryIO, cast

from atom.errors import UserError
from atom_datasets.compression import Budget, bounded
from atom_datasets.json_lines import RECORD
from atom_datasets.links import original

_most: dict[str, int | None] = {}
"""Prefix of the addresses of a dataset's files -> maximum decompressed bytes of one file."""


def bound(beginning: str, most: int | None) -> None:
    """Limit the decompressed size of a dataset's files, in this process.

    Args:
        beginning: prefix of the addresses of its files.
        most: maximum bytes of one file; None: the default of
            :class:`atom_datasets.compression.Budget`.
    """
    _register()
    _most[beginning] = most


def entries(iterator: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and files of an archive; ``read`` returns at most a record's size."""
    for name, file in iterator:
        yield name, _Entry(name, file)


class _Entry:
    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._file = name, file

    def read(self) -> bytes:
        content = self._file.read(RECORD + 1)
        if len(content) > RECORD:
            raise UserError(
                f"{self._name} in an archive has more than {RECORD >> 20} MiB",
                valid="one record per entry",
                key="dataset.path",
            )
        return content


@cache
def _register() -> None:
    import fsspec  # type: ignore[import-untyped]
    from datasets.filesystems import COMPRESSION_FILESYSTEMS
    from fsspec.implementations.zip import ZipFileSystem  # type: ignore[import-untyped]

    for kind in (*COMPRESSION_FILESYSTEMS, ZipFileSystem):
        name = kind.protocol
        made = type(kind.__name__, (_Bounding, kind), {})
        fsspec.register_implementation(name, made, clobber=True)


class _Bounding:
    """A filesystem of one compressed file, or of an archive, with a size limit."""

    _open_with_fsspec: Any
    of: Any

    def _open(self, path: str, mode: str = "rb", **options: Any) -> BinaryIO:
        stream = cast(Any, super())._open(path, mode, **options)
        of_archive = hasattr(self, "of")
        file = self.of if of_archive else self._open_with_fsspec()
        if mode != "rb" or not hasattr(file, "fs"):
            return cast(BinaryIO, stream)
        address = _address(file)
        most = next((most for start, most in _most.items() if address.startswith(start)), None)
        size = int(file.fs.info(file.path).get("size") or 0)
        return bounded(stream, original(address), Budget(size, most))


def _address(file: Any) -> str:
    """Return the path of a local file, or the address of another: ``hf://datasets/…``."""
    local = "file" in (
        [file.fs.protocol] if isinstance(file.fs.protocol, str) else file.fs.protocol
    )
    return str(file.path if local else file.fs.unstrip_protocol(file.path))
