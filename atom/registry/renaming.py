"""Translate the keys in a component's errors to the keys that the user wrote.

A component uses the keys of its kind's section (``dataset.path``), wherever the user has written it
(``dataset.sources.a.path``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from atom.data.dealing import is_indexed
from atom.errors import UserError
from atom.plugin import Document, Documents, DocumentSource


def absolute(named: str, kind: str, key: str) -> str:
    """Return the user's key for a key that a component names.

    Args:
        named: the component's key: below its kind, or already the user's.
        kind: kind of the component.
        key: where the user wrote the component.
    """
    if named == key or named.startswith(f"{key}.") or not re.match(rf"{kind}(\.|$)", named):
        return named
    return key + named.removeprefix(kind)


@contextmanager
def placed() -> Iterator[None]:
    """Keep the key of a :class:`UserError`, because it is already the user's."""
    try:
        yield
    except UserError as error:
        error.placed = True
        raise


@contextmanager
def renamed(kind: str, key: str, fields: Iterable[str] = ()) -> Iterator[None]:
    """Replace the component's keys in a :class:`UserError`, and in its sentence, by the user's.

    Args:
        kind: the component's name for its section.
        key: the user's key for it.
        fields: the component's parameters, as a sentence can name them (``dataset.format``).
    """
    try:
        yield
    except SystemExit as end:
        # It would end ATOM as if the run had ended.
        raise RuntimeError(f"{key}: a component called sys.exit({end.code!r})") from end
    except UserError as error:
        if error.placed:
            raise
        error.placed = True
        if error.key is not None:
            error.key = absolute(error.key, kind, key)
        if names := "|".join(map(re.escape, fields)):
            # Do not match inside a file name, such as data/dataset.path/x.
            pattern = rf"(?<![\w./\\-]){kind}(?=\.(?:{names})\b(?![/\\-]))"
            error.problem = re.sub(pattern, lambda _: key, error.problem)
            if error.valid is not None:
                error.valid = re.sub(pattern, lambda _: key, error.valid)
        raise


class RenamedDocuments:
    """Documents with errors that name the user's keys."""

    def __init__(self, documents: Documents, names: tuple[str, str, tuple[str, ...]]) -> None:
        self._documents = documents
        self._names = names

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        with renamed(*self._names):
            return self._documents[index]

    def __getattr__(self, name: str) -> Any:
        # Other methods of the documents, such as those of stored tokens.
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._documents, name)

        def call(*arguments: Any) -> Any:
            with renamed(*self._names):
                return method(*arguments)

        return call


class _RenamedSource:
    """A source with errors that name the user's keys."""

    def __init__(self, source: Any, names: tuple[str, str, tuple[str, ...]]) -> None:
        self._source = source
        self._names = names

    def check(self) -> str:
        with renamed(*self._names):
            digest: str = self._source.check()
            return digest

    def __getattr__(self, name: str) -> Any:
        # Delegate other attributes, except those that copying looks up, since this object is still
        # empty then.
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._source, name)
        if not callable(found):
            return found

        @wraps(found)
        def called(*arguments: Any, **named: Any) -> Any:
            with renamed(*self._names):
                return found(*arguments, **named)

        return called


class _RenamedIndexed(_RenamedSource):
    def documents(self) -> RenamedDocuments:
        with renamed(*self._names):
            return RenamedDocuments(self._source.documents(), self._names)


class _RenamedLanes(_RenamedSource):
    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        with renamed(*self._names):
            yield from self._source.lane(lane, lanes, seed=seed, epoch=epoch, start=start)


def renamed_source(
    source: DocumentSource, kind: str, key: str, fields: tuple[str, ...]
) -> DocumentSource:
    """Return the source with errors that name the user's keys; the arguments are those of
    :func:`renamed`.
    """
    names = (kind, key, fields)
    return _RenamedIndexed(source, names) if is_indexed(source) else _RenamedLanes(source, names)
