"""Split a source of documents into shards, the same for any number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from atom.data.dealing import DealtSource
from atom.data.manifest import MadeBy, Manifest, TokenizerOf
from atom.plugin import Document, LaneSource

LANES = 16
"""Default number of shards of a stream."""

_FEWEST, _MOST, _SHARDS = 64, 1 << 18, 256
"""Documents of a shard, and the number of shards to aim at between these limits."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the bytes of the shards depend on.

    Attributes:
        source: the dataset.
        tokenizer: the tokenizer.
        documents: number of documents; None for a stream.
        lanes: number of lanes that a stream is read in; None for random access.
    """

    source: MadeBy
    tokenizer: TokenizerOf
    documents: int | None
    lanes: int | None

    @property
    def shards(self) -> int:
        """The number of shards."""
        if self.lanes is not None:
            return self.lanes
        return -(-self._count // self.shard_documents)

    @property
    def shard_documents(self) -> int:
        """Documents of each shard but the last: a function of the number of documents alone."""
        return min(max(-(-self._count // _SHARDS), _FEWEST), _MOST)

    @property
    def _count(self) -> int:
        assert self.documents is not None, "a stream has no numbers"
        return self.documents

    def read(self, source: LaneSource, number: int) -> Iterator[Document]:
        """Yield the documents of a shard: a range of them, or a lane of a stream."""
        if self.lanes is not None:
            yield from source.lane(number, self.lanes, seed=0, epoch=0)
            return
        documents = numbered(source)
        begin = number * self.shard_documents
        for index in range(begin, min(begin + self.shard_documents, self._count)):
            yield documents[index]

    def identity(self) -> dict[str, object]:
        """Return the values that must be equal for a preparation to resume."""
        return {
            "dataset": self.source.digest,
            "tokenizer": self.tokenizer.digest,
            "documents": self.documents,
            "lanes": self.lanes,
        }


def identity_of(manifest: Manifest) -> dict[str, object]:
    """Return the :meth:`Recipe.identity` that a manifest was made by."""
    return {
        "dataset": manifest.source.digest,
        "tokenizer": manifest.tokenizer.digest,
        "documents": manifest.documents if manifest.lanes is None else None,
        "lanes": manifest.lanes,
    }


def numbered(source: LaneSource) -> Any:
    """Return the documents of a source with random access."""
    assert isinstance(source, DealtSource)
    return source.documents()


def size_of(source: LaneSource, lanes: int) -> tuple[int | None, int | None]:
    """Return the number of documents, or for a stream the number of lanes; the other is None.

    Args:
        source: a source that ATOM has opened.
        lanes: number of lanes of a stream that has so many documents.
    """
    if isinstance(source, DealtSource):
        return len(numbered(source)), None
    # Lanes share documents if there are fewer documents than lanes.
    first = sum(1 for _ in islice(source.lane(0, 1, seed=0, epoch=0), lanes))
    return None, lanes if first == lanes else 1
