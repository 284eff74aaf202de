"""Check untrusted folders for links that lead outside, pipes and devices."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from atom.errors import UserError

_MOST = 1_000_000
"""Limit on the entries of a run folder; a run with thousands of ranks and checkpoints
has a tenth.
"""

_CHECKPOINT = "step-"
_NOT_READ = "wandb"
"""Folder of W&B, with links to its own logs; no ATOM command reads it."""

CACHED = ("models--", "datasets--")
"""Prefixes of repository folders in Hugging Face's cache."""


def check(folder: Path) -> None:
    """Refuse a run folder that contains a link to outside, a pipe or a device.

    The folder itself may be a link. Files of a checkpoint are checked when they are read; W&B's
    folder is never read.

    Raises:
        UserError: it contains one.
    """
    root = os.path.realpath(folder)
    for number, entry in enumerate(_entries(root)):
        if number == _MOST:
            raise UserError(f"{folder} holds more than {_MOST:,} files", valid="a run folder")
        name = os.path.relpath(entry.path, root)
        if entry.is_symlink():
            try:
                target = os.path.realpath(entry.path)
            except FileNotFoundError:  # it went between the two questions
                continue
            if not _is_within(target, root):
                raise UserError(
                    f"{folder} holds a link that leads out of it ({name})",
                    valid=f"a folder without such links: put {name} itself there, or remove it",
                )
        elif not (entry.is_dir() or entry.is_file()) and not _is_socket(entry):
            raise UserError(
                f"{folder} holds a pipe or a device ({name})", valid="a folder of files"
            )


def real(path: Path, folder: Path) -> Path:
    """Return the real file behind a name in a folder of Hugging Face's format.

    Hugging Face's cache has links there, to files of the same model. The folder itself may be a
    link.

    Raises:
        ValueError: the link leads elsewhere.
    """
    root = str(around(folder))
    found = Path(os.path.realpath(path))
    if not _is_within(str(found), root):
        raise ValueError(f"holds {path.name}, a link that leads out of it")
    if found.exists() and not found.is_file():
        raise ValueError(f"holds {path.name}, which is no regular file")
    return found


def around(folder: Path) -> Path:
    """Return the folder that contains all files of a folder; in Hugging Face's cache, the
    repository.
    """
    real = Path(os.path.realpath(folder))
    return next((each for each in (real, *real.parents) if each.name.startswith(CACHED)), real)


def _entries(root: str) -> Iterator[os.DirEntry[str]]:
    waiting = [root]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False) and not _is_left_alone(entry):
                        waiting.append(entry.path)
        except OSError:  # removed meanwhile, or not readable
            continue


def _is_left_alone(entry: os.DirEntry[str]) -> bool:
    return entry.name == _NOT_READ or entry.name.lstrip(".").startswith(_CHECKPOINT)


def _is_socket(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    except OSError:
        return True  # removed meanwhile


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
