"""Links in a folder of data that lead out of it.

Folders of data are often made of links, and whoever publishes a folder can put a link to a private
file into it. What a link out of a folder stands for is read if it passes as data by its own name.
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
"""Where data is kept under names that say nothing; blobs are those of Hugging Face's cache."""


def check(files: Iterable[Path], folder: Path, links: Links) -> Iterator[Path]:
    """Yield those of ``files`` that are elsewhere.

    Args:
        files: below ``folder``, as far as their names go.
        folder: what the user has named.
        links: ``data``, ``follow`` or ``refuse``: what of them may be.

    Raises:
        UserError: one may not be.
    """
    around = strangers.around(folder)
    for path in files:
        real = _real(path)
        if real.is_relative_to(around):
            continue
        if links == "refuse":
            raise UserError(
                f"{path} leads out of its folder by a link; valid: folders whose files are their "
                "own, or dataset.links=data",
                key="dataset.links",
                value=links,
            )
        if links == "data" and (reason := _no_data(path, real, around)):
            raise UserError(
                f"{path} leads out of its folder by a link, to {real}, which {reason}; valid: "
                "dataset.links=follow if that is your data",
                key="dataset.path",
            )
        yield path


def _no_data(path: Path, real: Path, around: Path) -> str | None:
    """Return why a file elsewhere may be something else than data."""
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
    # A link is rare: where a file is none, its folder's place is that of all beside it.
    if path.is_symlink():
        return Path(os.path.realpath(path))
    return _folder(path.parent) / path.name


@cache
def _folder(path: Path) -> Path:
    return Path(os.path.realpath(path))
