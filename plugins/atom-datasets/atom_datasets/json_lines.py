"""Read JSON lines: one object per line, each a record with a text field."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from atom.errors import UserError

WITHOUT_FIELD = "records without the field"
WITHOUT_TEXT = "records with no text in the field"
HALVES = "halves of surrogate pairs, read as U+FFFD"

RECORD = 64 << 20
"""Maximum bytes of a record: an endless line would fill the memory."""

_ARRAY_BYTES = 1 << 30
"""Maximum bytes of a file with a single array, which is read whole."""

_PART = 1 << 20

_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """A record or a row of a file, counted from 1.

    ``text`` is None if there is none to train on. ``problem`` says why a bad row cannot be read
    (with ``key``, the parameter at fault); ``note`` names what else to report. ``fields`` are those
    of a record without the text field. ``other`` is the name of a member of an archive that is no
    record.
    """

    number: int
    text: str | None = None
    problem: str | None = None
    key: str = "dataset.path"
    note: str | None = None
    fields: Iterable[str] = ()
    other: str | None = None

    def mistake(self, text_field: str) -> UserError:
        """Return the error of a bad row."""
        assert self.problem is not None
        value = text_field if self.key == "dataset.text_field" else ...
        return UserError(self.problem, key=self.key, value=value)


def read(
    stream: BinaryIO, name: object, text_field: str | None, *, arrays: bool = False
) -> Iterator[Row]:
    """Yield the records of a file.

    Args:
        stream: the file, decompressed.
        name: the file's name in messages.
        text_field: the field to read; None: all, as JSON.
        arrays: also read a file with a single array, whole.

    Raises:
        UserError: the file as a whole has another format.
    """
    lines = _Lines(stream)
    first = True
    for number, data in enumerate(lines, 1):
        if data is None:
            yield bad(number, name, f"it has more than {RECORD >> 20} MiB")
            continue
        line = data.removeprefix(codecs.BOM_UTF8) if number == 1 else data
        if line.isspace() or not line:
            continue
        if first and _ARRAY.match(line):
            if arrays:
                yield from _array(lines.whole(line, _ARRAY_BYTES), name, text_field)
                return
            raise UserError(
                f"{name} is one JSON array",
                valid="one JSON object per line (jq -c '.[]' converts it), or "
                "dataset=huggingface, which reads arrays",
                key="dataset.path",
            )
        first = False
        yield row(number, line, name, text_field)


class _Lines:
    """The lines of a stream, with their ends; None for a line above the size limit."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._read: list[bytes] = []
        """Lines read ahead, in reverse order."""
        self._begun = b""

    def __iter__(self) -> Iterator[bytes | None]:
        part = b" "
        while part:
            part = self._stream.read(_PART)
            *whole, self._begun = (self._begun + part).split(b"\n")
            self._read = [line + b"\n" for line in reversed(whole)]
            while self._read:
                line = self._read.pop()
                yield line if len(line) <= RECORD else None
            if len(self._begun) > RECORD:
                yield None
                self._skip()
        if self._begun:
            last, self._begun = self._begun, b""
            yield last

    def whole(self, first: bytes, most: int) -> bytes | None:
        """Return the line ``first`` and all that follows; None if that exceeds ``most`` bytes."""
        parts = [first, *reversed(self._read), self._begun]
        left = most - sum(map(len, parts))
        while left >= 0 and (part := self._stream.read(_PART)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts) if left >= 0 else None

    def _skip(self) -> None:
        self._begun = b""
        while part := self._stream.read(_PART):
            _, end, self._begun = part.partition(b"\n")
            if end:
                return


def _array(data: bytes | None, name: object, text_field: str | None) -> Iterator[Row]:
    if data is None:
        raise UserError(
            f"{name} is one JSON array of more than {_ARRAY_BYTES >> 30} GiB",
            valid="one JSON object per line (jq -c '.[]' converts it)",
            key="dataset.path",
        )
    try:
        records = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{name} is no JSON ({error})",
            valid="a complete copy of the file",
            key="dataset.path",
        ) from None
    for number, record in enumerate(records, 1):
        if isinstance(record, dict):
            yield text_row(number, record, name, text_field)
        else:
            yield bad(number, name, f"it is a {type(record).__name__}")


def text_row(
    number: int, record: dict[str, Any], name: object, text_field: str | None, unit: str = "line"
) -> Row:
    """Return the row of a parsed record; ``unit`` is what its number counts."""
    if text_field is None:
        return Row(number, as_text(record))
    if text_field not in record:
        return Row(number, note=WITHOUT_FIELD, fields=record)
    text = record[text_field]
    if text is None or text == "":
        return Row(number, note=WITHOUT_TEXT)
    if not isinstance(text, str):
        problem = f"holds {_shown(text)} and no text in {unit} {number} of {name}"
        return Row(number, problem=problem, key="dataset.text_field")
    # JSON can encode half of a surrogate pair; UTF-8 and Arrow cannot.
    if not text.isascii() and _SURROGATES.search(text):
        return Row(number, _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text), note=HALVES)
    return Row(number, text)


def as_text(record: dict[str, Any]) -> str:
    """Return a record as JSON; halves of surrogate pairs become U+FFFD."""
    text = json.dumps(record, ensure_ascii=False, default=str)
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def row(number: int, line: bytes, name: object, text_field: str | None, unit: str = "line") -> Row:
    """Return the row of a record; ``unit`` is what its number counts."""
    try:
        decoded = line.rstrip().decode()
        record = _parsed(decoded)
    except UnicodeDecodeError as error:
        return bad(number, name, f"byte {error.start + 1} is not UTF-8", unit)
    except ValueError as error:
        reason = re.sub(r": line 1 column (\d+) \(char \d+\)", r" at column \1", str(error))
        return bad(number, name, reason, unit)
    except RecursionError:
        return bad(number, name, "it is nested too deep", unit)
    if not isinstance(record, dict):
        return bad(number, name, f"it is a {type(record).__name__}", unit)
    for field in record if text_field is None else (text_field,):
        if _has_twice(decoded, field):
            return bad(number, name, f"it has {field} twice", unit)
    return text_row(number, record, name, text_field, unit)


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        # A number with thousands of digits is valid JSON, in a field that is not used.
        return json.loads(line, parse_int=float)


def _has_twice(line: str, field: str) -> bool:
    """Return whether a line's object has a field twice; a parser keeps only one of them."""
    if line.count(f'"{field}"') < 2:
        return False
    return sum(key == field for key, _ in json.loads(line, object_pairs_hook=list)) > 1


def bad(number: int, name: object, reason: str, unit: str = "line") -> Row:
    """Return the row of a record that cannot be read."""
    return Row(
        number,
        problem=f"{unit} {number} of {name} is no JSON record ({reason}); valid: one JSON object "
        f"per {unit}",
    )


def _shown(value: object) -> str:
    try:
        return json.dumps(value)[:40]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
