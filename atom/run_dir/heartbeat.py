"""Write and read the heartbeat file of a run: the last step done, its tokens, and the time.

Rank 0 overwrites it in place after each step, always with the same length, so that a full disk does
not make a run look hung.
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
    """The last heartbeat: a step, the time when it was done in seconds since the epoch, the number
    of heartbeats of its process (the first one precedes the process's first step), and the tokens
    that all ranks had trained on (None in a file of an earlier version)."""

    step: int
    time: float
    number: int
    tokens_seen: int | None = None


def beat(run: Path, step: int, number: int, tokens_seen: int) -> None:
    """Record that ``step`` is done now, as heartbeat ``number`` of this process."""
    words = "".join(f"{value:<{_WIDTH}}" for value in (step, number, tokens_seen))
    with suppress(OSError):
        file = files.opened(run / FILE_NAME, os.O_WRONLY | os.O_CREAT, below=run)
        try:
            os.pwrite(file, f"{words}\n".encode(), 0)
        finally:
            os.close(file)


def last(run: Path) -> Beat | None:
    """Return the last heartbeat; None if no process has reached its first step."""
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
