"""``stdlib``: read the text files of Python's standard library."""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from atom.errors import UserError
from atom.plugin import Contents
from atom_datasets.config import Stdlib
from atom_datasets.finding import walk
from atom_datasets.text_files import TextFile, TextFiles

SUFFIXES = frozenset({".py", ".txt", ".rst"})
WITHOUT = frozenset({"site-packages", "dist-packages", "__pycache__"})


def source(config: Stdlib) -> StdlibSource:
    """Return the source that ``config`` describes."""
    return StdlibSource(max_chars=config.max_chars)


@dataclass(frozen=True)
class StdlibSource:
    """The standard library's files, one document each; its id is the path within the library."""

    max_chars: int

    def check(self) -> str:
        """Return a digest of the files' paths and sizes and the version of Python.

        Raises:
            UserError: this Python has no source files of its library.
        """
        files = _files(_folder())
        if not files:
            raise UserError(
                f"there is no source of the standard library in {_folder()}",
                valid="a Python that comes with it, or another dataset",
                key="dataset.name",
                value="stdlib",
            )
        sizes = [(file.name, file.size) for file in files]
        recipe = [platform.python_version(), self.max_chars, sizes]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()

    def contents(self) -> Contents:
        """Return the number of files and documents."""
        files = [file for file in _files(_folder()) if file.size > 0]
        documents = _documents(_folder(), self.max_chars)
        return Contents(files=len(files), documents=len(documents))

    def documents(self) -> TextFiles:
        """Return the documents."""
        return _documents(_folder(), self.max_chars)


def files() -> tuple[TextFile, ...]:
    """Return the library's files; none if this Python comes without them."""
    return _files(_folder())


def _folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


@lru_cache(maxsize=1)
def _files(folder: Path) -> tuple[TextFile, ...]:
    if not folder.is_dir():
        return ()
    return tuple(
        TextFile(name=path.relative_to(folder).as_posix(), path=path, size=path.stat().st_size)
        for path in walk(folder, WITHOUT)
        if path.suffix in SUFFIXES and path.is_file()
    )


@lru_cache(maxsize=1)
def _documents(folder: Path, max_chars: int) -> TextFiles:
    return TextFiles(_files(folder), max_chars)
