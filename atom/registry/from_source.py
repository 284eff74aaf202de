"""Import modules from the source that was looked at, whatever bytecode lies beside it.

Python runs the bytecode of a ``__pycache__`` if two numbers in it match the source file, or if it
says that they need not.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType


def use(sources: Mapping[str, str | None]) -> None:
    """Have the files of ``sources`` imported from their text, which must have that SHA-256."""
    sys.meta_path.insert(0, _Finder(sources))


class _Finder(MetaPathFinder):
    """Finds what others find, and takes their loader of files of Python from those it knows."""

    def __init__(self, sources: Mapping[str, str | None]) -> None:
        self._sources = {str(Path(path).absolute()): digest for path, digest in sources.items()}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if isinstance(finder, _Finder) or not hasattr(finder, "find_spec"):
                continue
            if (spec := finder.find_spec(name, path, target)) is not None:
                break
        else:
            return None
        place = str(Path(spec.origin).absolute()) if spec.has_location and spec.origin else ""
        if type(spec.loader) is SourceFileLoader and place in self._sources:
            spec.loader = _Loader(name, place, self._sources[place])
            spec.cached = None
        return spec


class _Loader(SourceFileLoader):
    """Compiles a file of Python each time."""

    def __init__(self, name: str, path: str, digest: str | None) -> None:
        super().__init__(name, path)
        self._digest = digest

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        if hashlib.sha256(source).hexdigest() != self._digest:
            raise ImportError(f"{path} has changed since it was compared to the lock")
        code: CodeType = self.source_to_code(source, path)
        return code
