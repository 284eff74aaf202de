"""Deal the documents of a source to lanes: the sequences of the global batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, TypeGuard, TypeVar, cast

import numpy as np

from atom.data.order import NEWEST, SORTED, Order
from atom.plugin import Document, Documents, DocumentSource, IndexedSource, LaneSource

V = TypeVar("V")

_FIRST, _MOST = 32, 4096
"""Positions computed at once: few at first, as a lane of a short run needs few."""


def dealt(source: DocumentSource, order: int = NEWEST) -> LaneSource:
    """Return a source that deals its documents to lanes: ``source`` itself, or, if it has random
    access, a :class:`DealtSource`.

    Args:
        source: any source.
        order: the version of the order, see :data:`atom.data.order.NEWEST`.
    """
    if is_indexed(source):
        return DealtSource(source, order)
    return cast(LaneSource, source)


def is_indexed(source: DocumentSource) -> TypeGuard[IndexedSource]:
    """Return whether ATOM deals the documents of the source: it has no ``lane`` of its own."""
    return not callable(getattr(source, "lane", None))


def told(source: DocumentSource, method: str, otherwise: V, *arguments: Any) -> V:
    """Return what an optional method of a source returns, or ``otherwise``.

    A source may have an attribute of its own with the name of the method.
    """
    found = getattr(source, method, None)
    return found(*arguments) if callable(found) else otherwise


def readings(source: LaneSource, lanes: int) -> int:
    """Return how often an epoch of all lanes reads a document; the most often read one, if lanes
    share documents because there are more lanes. A stream is not counted.
    """
    if not isinstance(source, DealtSource):
        return 1
    return max(-(-lanes // max(len(source.documents()), 1)), 1)


class DealtSource:
    """A :class:`LaneSource` that shuffles the documents of an indexed source and deals them.

    It has the other methods of the source, too, such as ``documents``.
    """

    def __init__(self, source: IndexedSource, order: int) -> None:
        self._source = source
        self._order = order

    def check(self) -> str:
        return self._source.check()

    def ordered(self, digest: str) -> str:
        """Return a digest of the documents in their order; ``digest`` is that of their content.

        It is the same for both versions of an order that they share.
        """
        if self._order == 1 or len(self._source.documents()) <= SORTED:
            return digest
        return hashlib.sha256(f"{digest} in order {self._order}".encode()).hexdigest()

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        """Yield the documents of a lane; see :func:`deal`."""
        documents, order = self._source.documents(), self._order
        return deal(documents, lane, lanes, seed=seed, epoch=epoch, start=start, order=order)

    def __getattr__(self, name: str) -> Any:
        # Copying looks up attributes of an object that is still empty.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DealtSource) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self._source, self._order))


def deal(
    documents: Documents,
    lane: int,
    lanes: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    order: int = NEWEST,
) -> Iterator[Document]:
    """Yield documents ``start``, ``start + 1``, … of ``lane`` in epoch ``epoch``.

    An epoch is a permutation of the documents, and lane i takes its i-th document and every
    ``lanes``-th after it. If there are n < ``lanes`` documents, lane i takes document i % n of
    the permutation only, so that every lane has something to read.
    """
    for index in indices(len(documents), lane, lanes, seed, epoch, start, order):
        yield documents[index]


def indices(
    count: int, lane: int, lanes: int, seed: int, epoch: int, start: int, order: int
) -> Iterator[int]:
    """Yield the indices of the documents that :func:`deal` yields."""
    if count == 0:
        return
    shuffled = Order(count, seed, epoch, order)
    position, size = lane % count + start * lanes, _FIRST
    while position < count:
        end = min(position + size * lanes, count)
        yield from shuffled.at(np.arange(position, end, lanes)).tolist()
        position += size * lanes
        size = min(2 * size, _MOST)
