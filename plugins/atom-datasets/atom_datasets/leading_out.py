"""Check links that lead out of a data folder.

Data folders often consist of links, but the publisher of a folder can link to a private file. The
target of a link out of the folder is read only if its own name looks like data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from atom.errors import UserError
from atom.io import strangers

Links = Literal["data", "follow", "refuse"]

_STORES = (".git/annex/objects/", ".dvc/cache/", "/blobs/")
"""Stores with opaque file names; blobs are those of Hugging Face's cache."""


def check(files: Iterable[Path], folder: Path, links: Links) -> Iterator[Path]:
    """Yield the files among ``files`` that are outside ``folder``.

    Args:
        files: files below ``folder`` by their names.
        folder: the folder that the user named.
        links: ``data``, ``follow`` or ``refuse``: which of them are permitted.

    Raises:
        UserError: one is not permitted.
    """
    around = strangers.around(folder)
    for path in files:
        real = _real(path)
        if real.is_relative_to(around):
            continue
        if links == "refuse":
            raise UserError(
                f"{path} leads out of its folder by a link",
                valid="a folder without such links, or dataset.links=data",
                key="dataset.links",
                value=links,
            )
        if links == "data" and (reason := _no_data(path, real, around)):
            raise UserError(
                f"{path} leads out of its folder by a link, to {real}, which {reason}",
                valid="dataset.links=follow if that is your data",
                key="dataset.path",
            )
        yield path


def _no_data(path: Path, real: Path, around: Path) -> str | None:
    """Return the reason to suspect that a file outside the folder is not data, or None."""
    store = next((store for store in _STORES if store in real.as_posix()), None)
    if store == "/blobs/":
        store = store if real.parent.parent.name.startswith(strangers.CACHED) else None
    if store:
        return None
    common = Path(os.path.commonpath([real, around]))
    parts = real.relative_to(common).parts
    if hidden := [part for part in parts if part.startswith(".") and part != ".cache"]:
        return f"is hidden ({hidden[0]})"
    suffixes = [found.suffix.lower() for found in (path, real)]
    if suffixes[0] != suffixes[1] or not suffixes[1]:
        return "has not the suffix of the link" if suffixes[0] else "has no suffix"
    return None


def _real(path: Path) -> Path:
    # Links are rare: resolve other files through their folder's real path, which is cached.
    if path.is_symlink():
        return Path(os.path.realpath(path))
    return _folder(path.parent) / path.name


@cache
def _folder(path: Path) -> Path:
    return Path(os.path.realpath(path))
