"""Determine which files belong to a package; an entry point can name any module, and importing it
runs code.

An allowed package must not, by its entry point, load code of another package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import machinery, metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_SUFFIXES = machinery.all_suffixes()


def stray(
    distribution: metadata.Distribution, module: str, depth: int, source: Path
) -> Path | None:
    """Return a file that importing a module would execute and that belongs to another package, or
    None.

    Args:
        distribution: the package with the entry point that names the module.
        module: its full name.
        depth: the number of components of ``module`` that lead to ``source``.
        source: the folder of the outermost regular package, or the file of a module without one.
    """
    own = None
    for file in _run_by_import(source, module.split(".")[depth:]):
        own = own or _Own(distribution)
        if not own.has(file, source.parents[depth - 1]):
            return file
    return None


def editable_root(distribution: metadata.Distribution) -> Path | None:
    """Return the source folder of an editable install; None for any other install."""
    with suppress(OSError, ValueError, AttributeError, TypeError):
        content = json.loads(distribution.read_text("direct_url.json") or "{}")
        url = urlsplit(content.get("url", ""))
        if content.get("dir_info", {}).get("editable") is True and url.scheme == "file":
            return Path(url2pathname(url.path))
    return None


class _Own:
    """The files of a distribution, according to its installer's record."""

    def __init__(self, distribution: metadata.Distribution) -> None:
        self._site = Path(str(distribution.locate_file(""))).absolute()
        self._name = distribution.metadata["Name"]
        self._root = editable_root(distribution)
        self._recorded = (
            set(_recorded(distribution)) if distribution.read_text("RECORD") is not None else None
        )

    def has(self, file: Path, entry: Path) -> bool:
        """Return whether a file belongs to the distribution.

        Args:
            file: where Python finds it.
            entry: the folder of Python's import path that contains it.
        """
        # The same name in another folder of the path was put there by whoever set PYTHONPATH.
        if self._recorded is not None and file.relative_to(entry).as_posix() in self._recorded:
            return True
        if self._root is not None and not file.is_relative_to(self._site):
            return _real(file).is_relative_to(_real(self._root))
        if self._recorded is not None or not file.is_relative_to(self._site):
            return False
        # Without a record, as in a folder that was never installed, it belongs to no other
        # distribution.
        name = file.relative_to(self._site).as_posix()
        others = metadata.distributions(path=[str(self._site)])
        return not any(
            name in _recorded(other)
            for other in others
            if other.metadata["Name"] != self._name and other.read_text("RECORD") is not None
        )


def _recorded(distribution: metadata.Distribution) -> Iterator[str]:
    for file in distribution.files or ():
        yield os.path.normpath(file.as_posix())


def _run_by_import(source: Path, below: list[str]) -> Iterator[Path]:
    """Yield the files that an import executes: those of the parent packages, and the
    module's own.
    """
    if not source.is_dir():
        yield source
        return
    place = source
    for name in ("", *below):
        place = place / name
        for file in (place / f"__init__{suffix}" for suffix in _SUFFIXES):
            if file.is_file():
                yield file
                break
        else:
            files = (place.with_name(f"{place.name}{suffix}") for suffix in _SUFFIXES)
            yield from [file for file in files if file.is_file()][:1]


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
