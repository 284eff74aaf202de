"""Keep arrays that are derived from a file in the dataset's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from atom.errors import UserError
from atom.io.files import is_full, is_regular, make_folder
from atom_datasets.token_files import Stat

_SETTLED_NS = 2_000_000_000
"""As in :mod:`atom_datasets.identity`: a file written more recently may be written again with the
same modification time."""


def derived(
    cache: Path,
    sources: Sequence[Stat],
    recipe: object,
    names: Sequence[str],
    write: Callable[[Sequence[BinaryIO]], None],
) -> list[Path]:
    """Return files derived from others: those in the cache, or new ones.

    Args:
        cache: the dataset's cache folder.
        sources: the files that they are derived from.
        recipe: the parameters that define their content; any JSON.
        names: the suffix of each file.
        write: writes the content of each file.

    Raises:
        UserError: ``write`` raises it, or the disk is full.
    """
    stats = [[str(s.path.absolute()), s.size, s.mtime, s.inode] for s in sources]
    key = hashlib.sha256(json.dumps([recipe, stats]).encode()).hexdigest()
    paths = [cache / f"{key}.{name}" for name in names]
    settled = time.time_ns() - _SETTLED_NS
    old = all(s.mtime is not None and s.mtime < settled for s in sources)
    if old and all(is_regular(path) for path in paths):
        return paths
    try:
        make_folder(cache)
        _write(cache, paths, write)
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(
            f"the disk of the cache {cache} is full",
            valid="free space there, or another folder in ATOM_CACHE",
            key="dataset.path",
        ) from None
    return paths


def _write(cache: Path, paths: list[Path], write: Callable[[Sequence[BinaryIO]], None]) -> None:
    with ExitStack() as stack:
        unfinished: list[Any] = [
            stack.enter_context(tempfile.NamedTemporaryFile(dir=cache, delete=False)) for _ in paths
        ]
        try:
            write([file.file for file in unfinished])
            for file in unfinished:
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            for file in unfinished:
                Path(file.name).unlink(missing_ok=True)
            raise
    # Renamed when complete, so that no process ever sees a partial file.
    for file, path in zip(unfinished, paths, strict=True):
        Path(file.name).replace(path)
