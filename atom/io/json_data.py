"""Read untrusted JSON as data, with limits on size, depth and numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from atom.io.files import MOST, TooLargeError, open_regular, read_bytes

DEPTH = 40
LINE = 4 << 20
"""Limits of a document: nesting depth, and bytes per line."""

FILE = 1 << 30
"""Limit on the bytes of a file of JSON lines."""

INT64 = 2**63
_UINT64 = 2**64


def dumps(value: Any, indent: int | None = None) -> str:
    """Return ``value`` as JSON; a non-finite number becomes null.

    All characters other than printable ASCII are escaped.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def loads(data: bytes) -> Any:
    """Parse ``data``.

    Raises:
        ValueError: it is not JSON in UTF-8, is nested too deeply, or contains a number that is not
            finite or exceeds 64 bits.
    """
    try:
        found = _DECODER.decode(data.decode())
    except RecursionError:
        raise _too_deep() from None
    if data.count(b"{") + data.count(b"[") > DEPTH and _depth(found) > DEPTH:
        raise _too_deep()
    return found


def read(path: Path, *, most: int = MOST, below: Path | None = None) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: as for :func:`loads`, or the content is not an object.
        OSError: as for :func:`atom.io.files.read_bytes`.
    """
    found = loads(read_bytes(path, most=most, below=below))
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def lines(path: Path, *, most: int = FILE, below: Path | None = None) -> Iterator[bytes]:
    """Yield the complete lines of a file, without their newlines.

    Raises:
        TooLargeError: the file or a line is too large.
        OSError: the file cannot be read.
    """
    with open_regular(path, below=below) as file:
        if file.seek(0, 2) > most:
            raise TooLargeError(path, most)
        file.seek(0)
        # Read one byte more than the limit, to detect a longer line.
        while line := file.readline(LINE + 1):
            if len(line) > LINE:
                raise TooLongError(path)
            if line.endswith(b"\n"):
                yield line[:-1]


class TooLongError(TooLargeError):
    """Raised if a line exceeds the limit."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, LINE)
        self.strerror = f"it has a line of more than {LINE >> 20} MiB"


def _whole(text: str) -> int:
    number = int(text) if len(text) < 30 else _UINT64
    if abs(number) >= _UINT64:
        raise ValueError("it has a number of more than 64 bits")
    return number


def _real(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it has a number that is not finite: {text[:20]}")
    return number


def _none(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_real, parse_constant=_none)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return value


def _depth(found: Any) -> int:
    depth, level = 0, [found]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > DEPTH:
            break
        level = [
            child for each in level for child in (each.values() if isinstance(each, dict) else each)
        ]
    return depth


def _too_deep() -> ValueError:
    return ValueError(f"it nests more than {DEPTH} levels deep")
