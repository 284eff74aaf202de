"""Name the URLs of objects where messages name their copies in the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path

from atom.errors import UserError
from atom.io import caches, environment
from atom.io.copy_names import readable, told_beside
from atom.io.files import read_bytes
from atom.io.urls import Url


def url_of(path: Path) -> Url | None:
    """Return the URL that a path in the cache is a copy of, or None."""
    if not str(path).startswith(_copies()):
        return None
    with suppress(OSError, ValueError):
        return Url(str(json.loads(read_bytes(told_beside(path)))[0]))
    return None


def shown(path: Path) -> str:
    """Return a path for messages: the URL if it is in the cache."""
    return _shown(path) if str(path).startswith(_copies()) else str(path)


@contextmanager
def in_urls() -> Iterator[None]:
    """Name URLs in errors where they name copies in the cache; name the key of a store's error."""
    try:
        yield
    except UserError as error:
        error.problem = _with_urls(error.problem)
        if error.valid is not None:
            error.valid = _with_urls(error.valid)
        if isinstance(error.value, str | Path) and str(error.value).startswith(_copies()):
            error.value = _with_urls(str(error.value))
        raise


@lru_cache(maxsize=4096)
def _shown(path: Path) -> str:
    url = url_of(path)
    return _with_urls(str(path)) if url is None else str(url)


def _with_urls(text: str) -> str:
    before, *rest = text.split(_copies())
    return "".join([before, *map(readable, rest)])


def _copies() -> str:
    """Return the folder of the copies, with a slash."""
    return _copies_in(os.environ.get(environment.CACHE))


@cache
def _copies_in(named: str | None) -> str:  # noqa: ARG001 (the folder depends on it)
    return f"{caches.folder() / 'objects' / 'copies'}/"
