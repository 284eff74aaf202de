"""The file that tells that a run is alive: the last step that was done, its tokens, and when.

Rank 0 writes it between two steps, over what stood there and of one length, so that a full disk
does not make a run look as if it hung.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from atom.io import files, json_data

FILE_NAME = "logs/heartbeat"

_WIDTH = 20
_MOST = 256


class Beat(NamedTuple):
    """The last sign of life: a step, when it was done in seconds since the epoch, how many such
    signs its process had given, of which the first comes before any step of its own, and the tokens
    that all ranks had trained on (None in a file of an earlier version)."""

    step: int
    time: float
    number: int
    tokens_seen: int | None = None


def beat(run: Path, step: int, number: int, tokens_seen: int) -> None:
    """Write that ``step`` is done, now, as the ``number``-th sign of this process."""
    words = "".join(f"{value:<{_WIDTH}}" for value in (step, number, tokens_seen))
    with suppress(OSError):
        file = files.opened(run / FILE_NAME, os.O_WRONLY | os.O_CREAT, below=run)
        try:
            os.pwrite(file, f"{words}\n".encode(), 0)
        finally:
            os.close(file)


def last(run: Path) -> Beat | None:
    """Return the last sign of life; None if no process has come so far as to begin a step."""
    try:
        with files.open_regular(run / FILE_NAME, below=run) as file:
            words = file.read(_MOST).split()
            time = os.fstat(file.fileno()).st_mtime
        step, number, *tokens = (int(word) for word in words)
        if not all(0 <= value < json_data.INT64 for value in (step, number, *tokens)):
            return None
        return Beat(step, time, number, *tokens[:1])
    except (OSError, ValueError):
        return None
