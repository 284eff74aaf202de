"""Write a folder that appears under its name only when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atom.errors import UserError


def check(out: Path, option: str = "--out") -> None:
    """Refuse the value of ``option`` if a folder cannot be written there.

    Raises:
        UserError: something is there already, or the folder around it is not writable.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise UserError(f"{option} {out} {what}", valid="a new or empty folder")
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{option} {out} cannot be written", valid="a folder of yours")


@contextmanager
def filled(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, and rename it to ``out``; remove it after an exception."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
