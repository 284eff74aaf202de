"""What is added to a file of lines, while another process writes it."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from atom.files import whole_lines


class Tail:
    """The whole lines that are added to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._offset = 0

    def lines(self) -> list[bytes]:
        """Return the lines added since the last call, those of a replaced file first."""
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
        lines = whole_lines(_from(self._file, self._offset))
        self._offset += sum(len(line) + 1 for line in lines)
        return lines

    def _reopen(self) -> bool:
        """Open the file if it has appeared or been replaced; return whether it has."""
        try:
            file = self._path.open("rb", buffering=0)
        except FileNotFoundError:
            return False
        if self._file is not None:
            if os.path.samestat(os.fstat(file.fileno()), os.fstat(self._file.fileno())):
                file.close()
                return False
            # The old file lives as long as it is open: what both begin with has been returned.
            seen = _from(self._file, 0)[: self._offset]
            self._offset = _common(whole_lines(seen), whole_lines(_from(file, 0)))
            self._file.close()
        self._file = file
        return True


def _from(file: FileIO, offset: int) -> bytes:
    file.seek(offset)
    return file.read()


def _common(old: list[bytes], new: list[bytes]) -> int:
    """Return the length in bytes of the lines that ``old`` and ``new`` both begin with."""
    length = 0
    for before, after in zip(old, new, strict=False):
        if before != after:
            break
        length += len(before) + 1
    return length
