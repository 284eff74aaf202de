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

    fo: Any

    def _open(self, path: str, mode: str = "rb", **options: Any) -> BinaryIO:
        stream = cast(Any, super())._open(path, mode, **options)
        address = getattr(self.fo, "path", self.fo)
        if mode != "rb" or not isinstance(address, str):
            return cast(BinaryIO, stream)
        most = next((most for start, most in _most.items() if address.startswith(start)), None)
        return bounded(stream, original(address), Budget(_size(self.fo), most))


def _size(file: Any) -> int:
    """Return the compressed size of a file in bytes."""
    import fsspec

    if not isinstance(file, str):
        return int(getattr(file, "size", 0) or 0)
    system, path = fsspec.core.url_to_fs(file)
    return int(system.info(path).get("size") or 0)
