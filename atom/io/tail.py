"""Follow a file of lines while another process writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from atom.io.files import TooLargeError, open_regular, whole_lines
from atom.io.json_data import FILE, LINE, TooLongError

_CHUNK = 1 << 20


class Tail:
    """A reader of the complete lines that are added to a file.

    Args:
        path: the file; it need not exist yet.
        below: as for :func:`atom.io.files.opened`.
    """

    def __init__(self, path: Path, *, below: Path | None = None) -> None:
        self._path = path
        self._below = below
        self._file: BinaryIO | None = None
        self._offset = 0

    def lines(self) -> list[bytes]:
        """Return the lines added since the last call, those of a replaced file first.

        Raises:
            OSError: the file is unreadable, or too large for a file of a run.
        """
        lines = self._added()
        if self._reopen():
            lines += self._added()
        return lines

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _added(self) -> list[bytes]:
        if self._file is None:
            return []
        if os.fstat(self._file.fileno()).st_size < self._offset:
            self._offset = 0
        lines: list[bytes] = []
        self._file.seek(self._offset)
        rest = b""
        while chunk := self._file.read(_CHUNK):
            *whole, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE:
                raise TooLongError(self._path)
            lines += whole
            self._offset += sum(len(line) + 1 for line in whole)
            if self._offset > FILE:
                raise TooLargeError(self._path, FILE)
        return lines

    def _reopen(self) -> bool:
        """Open the file if it has appeared or been replaced; return whether it has."""
        try:
            file = open_regular(self._path, below=self._below)
        except FileNotFoundError:
            return False
        if self._file is not None:
            if os.path.samestat(os.fstat(file.fileno()), os.fstat(self._file.fileno())):
                file.close()
                return False
            # The old file remains readable while it is open: lines that both files begin with are
            # not returned again.
            seen = _beginning(self._file, self._offset)
            self._offset = _common(seen, _beginning(file, self._offset))
            self._file.close()
        self._file = file
        return True


def _beginning(file: BinaryIO, length: int) -> list[bytes]:
    """Return the complete lines among the first ``length`` bytes of a file."""
    file.seek(0)
    return whole_lines(file.read(length))


def _common(old: list[bytes], new: list[bytes]) -> int:
    """Return the length in bytes of the common leading lines of ``old`` and ``new``."""
    length = 0
    for before, after in zip(old, new, strict=False):
        if before != after:
            break
        length += len(before) + 1
    return length
