"""Read text files as documents: one per file, or several for a long file."""

from __future__ import annotations

import codecs
import io
import os
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from atom.errors import UserError
from atom.plugin import Document
from atom_datasets.finding import Tally, open_regular
from atom_datasets.tolerance import Tolerance


class TextFile(NamedTuple):
    """``name`` is for messages; ``size`` is in bytes, ``mtime`` (last modification) in nanoseconds.

    ``mtime`` is None if it does not matter.
    """

    name: str
    path: Path
    size: int
    mtime: int | None = None


class TextFiles:
    """The documents of text files, each readable by number without reading others.

    A file of more than ``max_chars`` bytes is cut about every ``max_chars // 2`` bytes, at the last
    line end before, or inside a line that is longer. The positions of the cuts depend only on the
    bytes around them. No part has more than ``max_chars`` characters, and the concatenated parts
    equal the file to the character, without a byte order mark at its start. Line ends are kept.
    Empty files are left out.

    Bytes that are not UTF-8 become U+FFFD. With ``max_bad_fraction``, a document that has some is
    empty and counted as bad.
    """

    def __init__(
        self, files: Iterable[TextFile], max_chars: int, max_bad_fraction: float | None = None
    ) -> None:
        self._files: list[TextFile] = []
        self.left_out = Tally()
        """Files without text."""
        for file in files:
            if file.size > 0:
                self._files.append(file)
            else:
                self.left_out.add("empty files", Path(file.name).name)
        self._max_chars = max_chars
        self._stride = max_chars // 2
        self._ends = list(accumulate(self._parts(file) for file in self._files))
        self._tolerance: Tolerance | None = None
        if max_bad_fraction is not None:
            self._tolerance = Tolerance(max_bad_fraction, len(self))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Document:
        """Return a document.

        Raises:
            UserError: its file is missing or has changed, or too many documents are not text.
        """
        number = bisect_right(self._ends, index)
        file = self._files[number]
        parts = self._parts(file)
        part = index - self._ends[number] + parts
        begin, data = self._read(file, part, parts)
        if parts == 1:
            return self._document(file, file.name, begin, data)
        last = part == parts - 1
        return self._document(file, f"{file.name}#{part}", begin, data, part == 0, last)

    def _document(
        self,
        file: TextFile,
        id: str,
        begin: int,
        data: bytes,
        starts: bool = True,
        ends: bool = True,
    ) -> Document:
        try:
            return Document(data.decode(), id, starts, ends)
        except UnicodeDecodeError as error:
            if self._tolerance is None:
                return Document(data.decode(errors="replace"), id, starts, ends)
            where = f"line {_line(file.path, begin + error.start)} of {file.name}"
            problem = f"byte 0x{data[error.start]:02x} is not UTF-8"
            self._tolerance.use(id, f"{where}: {problem}")
            return Document("", id, starts, ends, problem=f"{where}: {problem}")

    def _parts(self, file: TextFile) -> int:
        return 1 if file.size <= self._max_chars else -(-file.size // self._stride)

    def _read(self, file: TextFile, part: int, parts: int) -> tuple[int, bytes]:
        """Return the offset of the part in the file, and its bytes."""
        try:
            with open_regular(file.path) as stream:
                _check_unchanged(file, stream)
                if parts == 1:
                    return _without_mark(stream.read())
                begin = max(part - 1, 0) * self._stride
                stream.seek(begin)
                before = stream.read(self._stride) if part > 0 else b""
                after = stream.read(self._stride)
        except OSError as error:
            raise UserError(
                f"{file.name} cannot be read: {error.strerror or error}", key="dataset.path"
            ) from None
        if part == 0:
            begin, after = _without_mark(after)
        cut = _cut(before)
        last = part == parts - 1
        return begin + cut, before[cut:] + (after if last else after[: _cut(after)])


def _without_mark(data: bytes) -> tuple[int, bytes]:
    """Return the length of the byte order mark at the start of a file, and the data after it."""
    text = data.removeprefix(codecs.BOM_UTF8)
    return len(data) - len(text), text


def _check_unchanged(file: TextFile, stream: io.BufferedReader) -> None:
    """Refuse a file that has changed since the order of the documents was made."""
    now = os.fstat(stream.fileno())
    if now.st_size != file.size:
        change = f"it had {file.size:,} bytes and has {now.st_size:,}"
    elif file.mtime is not None and now.st_mtime_ns != file.mtime:
        change = "it has been written to"
    else:
        return
    raise UserError(
        f"{file.name} has changed under the run ({change})",
        valid="files that do not change during a run",
        key="dataset.path",
    )


def _line(path: Path, offset: int) -> int:
    """Return the line number of byte ``offset`` in a file, from 1."""
    line = 1
    with open_regular(path) as stream:
        while offset > 0 and (part := stream.read(min(offset, 1 << 20))):
            line += part.count(b"\n")
            offset -= len(part)
    return line


def _cut(window: bytes) -> int:
    """Return the position to cut ``window`` at.

    That is after its last line end, or else before its last character, which may be incomplete.
    """
    if line_end := window.rfind(b"\n") + 1:
        return line_end
    for back in range(1, min(4, len(window)) + 1):
        if window[-back] & 0b1100_0000 != 0b1000_0000:  # the first byte of a character
            return len(window) - back if window[-back] >= 0b1100_0000 else len(window)
    return len(window)
