"""Import modules from the verified source, ignoring bytecode files.

Python uses bytecode in a ``__pycache__`` if two numbers in it match the source file, or if it is
marked as unchecked.
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
    """Import the files of ``sources`` from their source, after comparing its SHA-256 with the given
    one.
    """
    sys.meta_path.insert(0, _Finder(sources))


class _Finder(MetaPathFinder):
    """A finder that delegates to the others and replaces the loader of known Python files."""

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
    """A loader that always compiles the source."""

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
