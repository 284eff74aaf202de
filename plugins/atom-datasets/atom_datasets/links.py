"""Make a folder of links for ``datasets``, with names that it does not interpret.

``datasets`` treats brackets in a path as a pattern and ``::`` as a chain of URLs, follows no link
to a folder, and does not recognize ``.JSONL``; it skips unmatched files silently.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from atom.errors import UserError

_SPECIAL = re.compile(r"[\[\]*?:#~]")


def linked(folder: Path, files: Iterable[Path], cache: Path) -> tuple[Path, dict[str, Path]]:
    """Make a folder in ``cache`` with a link to each of ``files``, if it does not exist.

    Return the folder, and the files by the paths of their links.

    Args:
        folder: contains the files; links keep their places within it.
        files: all of them, in order.
        cache: a folder that outlives the run.

    Raises:
        UserError: the cache's own path would be treated as a pattern.
    """
    if _SPECIAL.search(str(cache).replace("~", "")):
        raise UserError(
            f"the datasets library reads the name of its cache folder {cache} as a pattern",
            valid="HF_DATASETS_CACHE without brackets, colons and wildcards",
        )
    links: dict[str, Path] = {}
    for path in files:
        name = _plain(path.relative_to(folder).as_posix())
        while name in links:
            name = re.sub(r"(?=(\.[^./]*)*$)", "~", name, count=1)
        links[name] = path.absolute()
    recipe = "\0".join(f"{name}\0{path}" for name, path in links.items())
    place = cache / f"{hashlib.sha256(recipe.encode(errors='surrogateescape')).hexdigest()[:32]}.d"
    whole = {str(place / name): path for name, path in links.items()}
    if place.is_dir():
        return place, whole
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache))
    for name, path in links.items():
        link = unfinished / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    # Renamed when complete: several processes may make it at once, and the first one wins.
    with suppress(OSError):
        unfinished.rename(place)
    shutil.rmtree(unfinished, ignore_errors=True)
    return place, whole


def original(path: str) -> str:
    """Return the target of a link in such a folder, or another path or URL unchanged."""
    try:
        return str(Path(path).readlink())
    except OSError:
        return path


def _plain(name: str) -> str:
    """Return a name without special characters, and with suffixes in lower case."""
    *folders, last = _SPECIAL.sub(lambda found: f"~{ord(found[0]):02x}", name).split("/")
    stem, dot, suffixes = last.partition(".")
    return "/".join([*folders, stem + dot + suffixes.lower()])
