"""Pack the documents of a lane into sequences of training pairs.

A training pair is a token and its successor in the same document, so a document of N tokens has
N - 1 pairs and the last token is only a target. A part of a long document is packed like a
document: it has BOS only if it is the first part and EOS only if it is the last. The pair across
two parts is left out, as the next part may belong to another lane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from atom.data.documents import EPOCHS, Encoded, Stream
from atom.data.order import Order

Packing = Literal["concat", "best_fit", "none", "windows"]

BUFFER = 512
"""Documents of a lane that ``best_fit`` packs together."""

Position = tuple[int, int, int]
"""The state of a packer between two sequences; each says what the integers are."""

Span = tuple[int, str, int, int]
"""A part of a document: epoch, document id, first training pair, number of pairs."""


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` training pairs of a document from ``begin``."""

    epoch: int
    document: Encoded
    begin: int
    count: int

    @property
    def cut(self) -> bool:
        """Whether the document continues in another sequence."""
        return self.begin + self.count < self.document.pairs

    @property
    def span(self) -> Span:
        return self.epoch, self.document.id, self.begin, self.count


@dataclass
class Packed:
    """What was packed: sequences, documents in them, those cut, and pairs of padding.

    Attributes:
        sequences: number of sequences.
        documents: number of parts of documents in them.
        cut: number of documents, or rests of them, that continue in another sequence.
        padding: training pairs that are padding.
    """

    sequences: int = 0
    documents: int = 0
    cut: int = 0
    padding: int = 0

    def add(self, other: Packed) -> None:
        """Add the counts of ``other``."""
        self.sequences += other.sequences
        self.documents += other.documents
        self.cut += other.cut
        self.padding += other.padding


class Packer(ABC):
    """A packer of the documents of one stream; :meth:`read` returns sequence after sequence.

    Attributes:
        position: the state between two sequences.
        packed: counts of what was packed.
        numbered: whether a sequence is known by its number, without those before it.
    """

    numbered: ClassVar[bool] = False

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.packed = Packed()
        self.go_to((0, 0, 0))

    @property
    @abstractmethod
    def position(self) -> Position: ...

    @abstractmethod
    def go_to(self, position: Position) -> None:
        """Go to a :attr:`position`; documents are opened at the next :meth:`read`."""

    @abstractmethod
    def read(self, length: int, number: int = 0) -> list[Part]:
        """Return the parts of documents in the next sequence, of at most ``length`` pairs.

        Args:
            length: pairs of a sequence.
            number: its number among all sequences of the source, over all lanes, if sequences are
                :attr:`numbered`.

        Raises:
            UserError: the source is empty, or is not the one of the position.
        """

    def _counted(self, parts: list[Part], length: int) -> list[Part]:
        filled = sum(part.count for part in parts)
        self.packed.add(Packed(1, len(parts), sum(part.cut for part in parts), length - filled))
        return parts


class _OneByOne(Packer):
    """A packer that reads one document after another.

    The position is the epoch, the index of the current document, and how many of its pairs are
    read.
    """

    @property
    def position(self) -> Position:
        return self._epoch, self._index, self._pairs

    def go_to(self, position: Position) -> None:
        self._epoch, self._index, self._pairs = position
        self._documents: Iterator[tuple[int, Encoded]] | None = None
        self._document: Encoded | None = None

    def _current(self) -> Encoded:
        """Return a document with pairs left: the current one, or the next."""
        if self._documents is None:
            self._documents = self._opened()
        if self._document is None or self._pairs >= self._document.pairs:
            self._epoch, self._document = next(self._documents)
            self._index, self._pairs = self._document.index, 0
        return self._document

    def _opened(self) -> Iterator[tuple[int, Encoded]]:
        if self._pairs == 0:  # the lane has read nothing so far
            return self.stream.trainable(self._epoch, self._index)
        self._document = next(self.stream.documents(self._epoch, self._index), None)
        if self._document is None or self._pairs > self._document.pairs:
            raise self.stream.changed(self._index)
        return self.stream.trainable(self._epoch, self._index + 1)

    def _take(self, room: int) -> Part:
        """Return pairs of the current document, at most ``room``."""
        document = self._current()
        begin = self._pairs
        self._pairs += (count := min(document.pairs - begin, room))
        return Part(self._epoch, document, begin, count)


class Concatenating(_OneByOne):
    """A packer that cuts documents where a sequence ends, and wastes nothing."""

    def read(self, length: int, number: int = 0) -> list[Part]:  # noqa: ARG002
        parts: list[Part] = []
        room = length
        while room:
            parts.append(self._take(room))
            room -= parts[-1].count
        return self._counted(parts, length)


class Padding(_OneByOne):
    """A packer that gives each document its own sequence, or several if it is longer."""

    def read(self, length: int, number: int = 0) -> list[Part]:  # noqa: ARG002
        return self._counted([self._take(length)], length)


class BestFit(Packer):
    """A packer that cuts only documents longer than a sequence.

    It takes :data:`BUFFER` documents of the lane at a time, longest first, and puts each where it
    leaves the least room (best-fit decreasing; Ding et al., 2024, "Fewer Truncations Improve
    Language Modeling"). The sequences come in the order of their first documents.

    The position is the epoch, the index of the first document of the buffer, and the number of
    sequences read from it.
    """

    @property
    def position(self) -> Position:
        return self._epoch, self._first, self._read

    def go_to(self, position: Position) -> None:
        self._epoch, self._first, self._read = position
        self._bins: list[list[Part]] | None = None
        self._next = self._first

    def read(self, length: int, number: int = 0) -> list[Part]:  # noqa: ARG002
        if self._bins is None:
            self._bins = self._pack(length)
            if self._read > len(self._bins):
                raise self.stream.changed(self._first)
        if self._read == len(self._bins):
            self._bins = self._following(length)
        self._read += 1
        return self._counted(self._bins[self._read - 1], length)

    def _following(self, length: int) -> list[list[Part]]:
        """Go to the next buffer with training pairs, and return its sequences."""
        begun = self._epoch
        while self._epoch < begun + EPOCHS:
            if self._next == self._first:  # the buffer is empty: the epoch has ended
                self._epoch, self._next = self._epoch + 1, 0
            self._first, self._read = self._next, 0
            if bins := self._pack(length):
                return bins
        raise self.stream.without_text()

    def _pack(self, length: int) -> list[list[Part]]:
        """Read the buffer that begins at the position, and return its sequences."""
        documents = []
        self._next = self._first
        for document in self.stream.documents(self._epoch, self._first):
            documents.append(document)
            self._next = document.index + 1
            if len(documents) == BUFFER:
                break
        return best_fit(documents, length, self._epoch)


def best_fit(documents: list[Encoded], length: int, epoch: int = 0) -> list[list[Part]]:
    """Return sequences of at most ``length`` pairs that hold the documents of an epoch.

    A document with more pairs fills whole sequences, and its rest is packed like a document.
    """
    parts = [
        Part(epoch, document, begin, min(length, document.pairs - begin))
        for document in documents
        for begin in range(0, document.pairs, length)
    ]
    bins: list[list[Part]] = []
    room: list[tuple[int, int]] = []  # (pairs left, number of the bin), sorted
    # sorted() is stable, so that the result does not depend on the machine.
    for part in sorted(parts, key=lambda part: -part.count):
        at = bisect_left(room, (part.count, -1))
        if at == len(room):
            bins.append([part])
            left, number = length, len(bins) - 1
        else:
            left, number = room.pop(at)
            bins[number].append(part)
        if left > part.count:
            insort(room, (left - part.count, number))
    for each in bins:
        each.sort(key=lambda part: (part.document.index, part.begin))
    bins.sort(key=lambda each: (each[0].document.index, each[0].begin))
    return bins


class Windows(Packer):
    """A packer of stored tokens that shuffles windows instead of documents.

    Each shard is cut into windows of ``length`` + 1 tokens, of which neighbours share one. A window
    has the pairs of its documents, and padding for pairs across two documents.
    Sequence i of an epoch is a window that is computed, so that any step is found at once.

    The position is the epoch of the last sequence and, in a mixture, the number of sequences that
    its stages give the source before the run begins to read it. What comes next is known by its
    number.
    """

    numbered = True

    @property
    def position(self) -> Position:
        return self._epoch, self._before, 0

    def go_to(self, position: Position) -> None:
        self._epoch, self._before, _ = position
        self._cut: _Cut | None = None
        self._order: Order | None = None

    def read(self, length: int, number: int = 0) -> list[Part]:
        if self._cut is None:
            self._cut = _Cut(self.stream, length)
        if self._cut.windows == 0:
            raise self.stream.without_text()
        epoch, position = divmod(number, self._cut.windows)
        if self._order is None or epoch != self._epoch:
            self._order = self.stream.order(self._cut.windows, epoch)
        self._epoch = epoch
        return self._counted(self._cut.parts(int(self._order.at(position)), epoch), length)


class _Cut:
    """Stored tokens, cut into windows of ``length`` training pairs."""

    def __init__(self, stream: Stream, length: int) -> None:
        self._stream, self._stored = stream, stream.stored()
        self._length = length
        self._sizes = np.asarray(self._stored.shard_sizes(), dtype=np.int64)
        self._ends = np.cumsum(-(-np.maximum(self._sizes - 1, 0) // length))
        self.windows = int(self._ends[-1]) if len(self._ends) else 0

    def parts(self, window: int, epoch: int) -> list[Part]:
        shard = int(np.searchsorted(self._ends, window, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        begin = (window - before) * self._length
        end = min(begin + self._length + 1, int(self._sizes[shard]))
        parts = []
        for index, first, document in self._stored.between(shard, begin, end):
            low, high = max(begin, first), min(end, first + len(document.tokens))
            if high - low > 1:
                encoded = Encoded(index, self._stream.named(document).id, document.tokens)
                parts.append(Part(epoch, encoded, low - first, high - low - 1))
        return parts


PACKERS: dict[Packing, type[Packer]] = {
    "concat": Concatenating,
    "best_fit": BestFit,
    "none": Padding,
    "windows": Windows,
}
