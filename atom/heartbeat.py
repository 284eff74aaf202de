"""The file that tells that a run is alive: the last step that was done, and when.

Rank 0 writes it between two steps, over what stood there and of one length, so that a full disk
does not make a run look as if it hung.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FILE_NAME = "logs/heartbeat"

_WIDTH = 20


def beat(run: Path, step: int) -> None:
    """Write that ``step`` is done, now."""
    with suppress(OSError):
        file = os.open(run / FILE_NAME, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(file, f"{step:<{_WIDTH}}\n".encode(), 0)
        finally:
            os.close(file)


def last(run: Path) -> tuple[int, float] | None:
    """Return the last step that was done and when, in seconds since the epoch; None if no process
    has come so far as to begin one."""
    try:
        path = run / FILE_NAME
        return int(path.read_text()), path.stat().st_mtime
    except (OSError, ValueError):
        return None
