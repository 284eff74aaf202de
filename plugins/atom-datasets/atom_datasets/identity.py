"""Compute digests of file contents, independent of place and time."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from atom.io.files import make_folder, read_bytes, write_text
from atom_datasets.finding import open_regular

WHOLE = 64 << 20
"""Largest file in bytes that is hashed whole; of a larger one, blocks spread over it are hashed."""

_BLOCK = 1 << 16
_BLOCKS = 64
_MOST_KEPT = 1 << 30
_WORTH_KEEPING = 16 << 20
"""Files from this size on, in bytes, have their digests cached."""

_SETTLED_NS = 2_000_000_000
"""Nanoseconds after which a modification time is reliable.

A file written more recently may be written again with the same time, given the resolution of its
filesystem's clock.
"""


class _Stat(NamedTuple):
    """File metadata that changes when a file is written or replaced."""

    path: str
    size: int
    mtime: int
    inode: int


def parts(files: Iterable[Path], kept: Callable[[], Path]) -> dict[str, str]:
    """Return the digest of each file's content by its name, in the order of ``files``.

    A name is the path within the common folder of all files.

    Args:
        files: the files to hash.
        kept: returns the cache folder for digests of unchanged files; called only if a file is
            large enough.
    """
    stats = [_stat(path) for path in files]
    names = _names([stat.path for stat in stats])
    return dict(zip(names, _digests(stats, kept), strict=True))


def digest(contents: Iterable[str], *recipe: object) -> str:
    """Return a digest of contents, in order, and of the other parameters that define documents."""
    return hashlib.sha256(json.dumps([*recipe, list(contents)]).encode()).hexdigest()


def addressed(files: Iterable[str | Path]) -> dict[str, str]:
    """Return the identity of each file that ``datasets`` reads.

    For a file of the Hub that is its address, with the repository's commit; for a local file its
    content.
    """
    from datasets import config

    paths = {file: Path(file) for file in files}
    local = [path for path in paths.values() if path.is_file()]
    remote = {str(file): str(file) for file, path in paths.items() if not path.is_file()}
    kept = Path(config.HF_DATASETS_CACHE) / "atom_datasets"
    return remote | (parts(local, lambda: kept) if local else {})


def _stat(path: Path) -> _Stat:
    found = path.stat()
    return _Stat(str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ino)


def _names(paths: Sequence[str]) -> list[str]:
    above = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120 (of a str)
    return [os.path.relpath(path, above) for path in paths]


def _digests(stats: Sequence[_Stat], kept: Callable[[], Path]) -> list[str]:
    if sum(min(stat.size, WHOLE) for stat in stats) < _WORTH_KEEPING:
        return [_content(stat) for stat in stats]
    of_set = hashlib.sha256("\0".join(stat.path for stat in stats).encode()).hexdigest()
    file = kept() / f"digests-{of_set}.json"
    known = _read(file)
    found = [known.get(stat) or _content(stat) for stat in stats]
    if any(stat not in known for stat in stats):
        settled = time.time_ns() - _SETTLED_NS
        pairs = zip(stats, found, strict=True)
        _write(file, {stat: each for stat, each in pairs if stat.mtime < settled})
    return found


@cache
def _content(stat: _Stat) -> str:
    with open_regular(Path(stat.path)) as stream:
        if stat.size <= WHOLE:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        found = hashlib.sha256(str(stat.size).encode())
        for number in range(_BLOCKS):
            stream.seek((stat.size - _BLOCK) * number // (_BLOCKS - 1))
            found.update(stream.read(_BLOCK))
        return found.hexdigest()


def _read(file: Path) -> dict[_Stat, str]:
    try:
        content = json.loads(read_bytes(file, most=_MOST_KEPT))
        return {_Stat(*stat): str(each) for stat, each in content}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _write(file: Path, digests: dict[_Stat, str]) -> None:
    make_folder(file.parent)
    write_text(file, json.dumps(list(digests.items())))
