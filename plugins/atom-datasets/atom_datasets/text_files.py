"""Text files as documents: a file each, or several where it is long."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from atom.plugin import Document


class TextFile(NamedTuple):
    """``name`` is for people; ``size`` is in bytes."""

    name: str
    path: Path
    size: int


class TextFiles:
    """The documents of text files, had by number without reading any other.

    A file of more than ``max_chars`` bytes is cut about every ``max_chars // 2`` bytes, at the last
    line end before, or within a line that is longer than that. Where the cuts are is seen from the
    bytes around them alone. No part has more than ``max_chars`` characters, and the parts put
    together are the file to the character. Bytes that are not UTF-8 become U+FFFD; line ends stay
    as they are. Empty files are left out.
    """

    def __init__(self, files: Iterable[TextFile], max_chars: int) -> None:
        self._files = [file for file in files if file.size > 0]
        self._max_chars = max_chars
        self._stride = max_chars // 2
        self._ends = list(accumulate(self._parts(file) for file in self._files))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Document:
        number = bisect_right(self._ends, index)
        file = self._files[number]
        parts = self._parts(file)
        part = index - self._ends[number] + parts
        if parts == 1:
            return Document(_decoded(file.path.read_bytes()), id=file.name)
        return Document(
            _decoded(self._read(file, part, last=part == parts - 1)),
            id=f"{file.name}#{part}",
            starts=part == 0,
            ends=part == parts - 1,
        )

    def _parts(self, file: TextFile) -> int:
        return 1 if file.size <= self._max_chars else -(-file.size // self._stride)

    def _read(self, file: TextFile, part: int, *, last: bool) -> bytes:
        begin = max(part - 1, 0) * self._stride
        with file.path.open("rb") as stream:
            stream.seek(begin)
            before = stream.read(self._stride) if part > 0 else b""
            after = stream.read(self._stride)
        return before[_cut(before) :] + (after if last else after[: _cut(after)])


def walk(folder: Path, without: frozenset[str] = frozenset()) -> list[Path]:
    """Return the files below ``folder``, sorted by their path within it.

    Hidden files and folders, and folders named in ``without``, are left out. Links to folders are
    not followed.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in without]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _cut(window: bytes) -> int:
    """Return where ``window`` is to be cut: after its last line end, or else before the character
    that its end may have cut through."""
    if line_end := window.rfind(b"\n") + 1:
        return line_end
    for back in range(1, min(4, len(window)) + 1):
        if window[-back] & 0b1100_0000 != 0b1000_0000:  # the first byte of a character
            return len(window) - back if window[-back] >= 0b1100_0000 else len(window)
    return len(window)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
