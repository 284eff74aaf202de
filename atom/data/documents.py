"""Read the documents of a lane as tokens, one epoch after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from atom.data.dealing import DealtSource
from atom.data.held_out import Side
from atom.data.order import Order
from atom.errors import UserError
from atom.plugin import Document, DocumentEncoder, Example, LaneSource, StoredTokens

Tokens = npt.NDArray[Any]
"""Token ids: a one-dimensional array of integers."""

_NOTHING: Tokens = np.empty(0, dtype=np.int32)

EPOCHS = 3
"""Epochs without a training pair after which a lane gives up; the first may be a rest."""


class Tokenizer(Protocol):
    """A tokenizer of text."""

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]: ...


class TextEncoder:
    """The encoder of a run without an objective: text between BOS and EOS, or stored tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, document: Document) -> Example | None:
        """Return a document as tokens.

        Raises:
            UserError: it is a record, and its text the record's JSON.
        """
        if document.record is not None:
            raise UserError(
                f"{document.id} is a record, and the run predicts text",
                valid="an objective that reads records (objective=sft), or a dataset of text",
                key="dataset",
            )
        if document.tokens is not None:
            return Example(document.tokens)
        # BOS and EOS alone would train the model to end texts at once.
        if not document.text:
            return Example(_NOTHING)
        ids = self._tokenizer.encode(document.text, add_bos=document.starts, add_eos=document.ends)
        return Example(np.asarray(ids, dtype=np.int32))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A document as tokens.

    Attributes:
        index: its index in the lane's epoch.
        id: its id, for people.
        tokens: its ids; fewer than two have no training pair.
        trained: for each id, whether the model is trained to predict it; None: all.
        begins: where each further sequence of an example begins.
    """

    index: int
    id: str
    tokens: Tokens
    trained: npt.NDArray[np.bool_] | None = None
    begins: tuple[int, ...] = ()

    @property
    def pairs(self) -> int:
        """Number of training pairs: a token and its successor."""
        return max(len(self.tokens) - 1, 0)


@dataclass
class LeftOut:
    """Counts of documents that this process has read and skipped.

    Attributes:
        empty: number of documents without text.
        short: number of documents of one token, which has no next token to predict.
        long: number of documents of which nothing fits a sequence.
        bad: unreadable documents with their problem, until they are recorded.
    """

    empty: int = 0
    short: int = 0
    long: int = 0
    bad: list[Document] = field(default_factory=list)

    def add(self, other: LeftOut) -> None:
        """Add the counts of ``other``."""
        self.empty += other.empty
        self.short += other.short
        self.long += other.long
        self.bad += other.bad


class Stream:
    """The documents of one lane of a source, as tokens.

    Args:
        source: the source.
        lane: number of the lane.
        lanes: number of lanes.
        seed: the seed of the order.
        encoder: converts documents to tokens.
        name: the key of the source, for errors.
        prefix: put before the ids of documents.
        side: the documents to read; the others count as read, and have no tokens. None: all.
    """

    def __init__(
        self,
        source: LaneSource,
        lane: int,
        lanes: int,
        *,
        seed: int,
        encoder: DocumentEncoder,
        name: str = "dataset",
        prefix: str = "",
        side: Side | None = None,
    ) -> None:
        self._source = source
        self.lane = lane
        self.lanes = lanes
        self._seed = seed
        self._encoder = encoder
        self.name = name
        self._prefix = prefix
        self._side = side
        self.left_out = LeftOut()

    def documents(self, epoch: int, start: int = 0) -> Iterator[Encoded]:
        """Yield the documents of ``epoch`` from index ``start`` on, those without training pairs
        too, which are counted.
        """
        documents = self._source.lane(
            self.lane, self.lanes, seed=self._seed, epoch=epoch, start=start
        )
        for index, document in enumerate(documents, start):
            document = self.named(document)
            example = self._example(document)
            yield Encoded(index, document.id, example.tokens, example.trained, example.begins)

    def named(self, document: Document) -> Document:
        """Return a document of the source with the id by which people know it."""
        return replace(document, id=self._prefix + document.id) if self._prefix else document

    def stored(self) -> StoredTokens:
        """Return the documents as stored tokens.

        Raises:
            UserError: they are text.
        """
        documents = stored(self._source)
        if documents is None:
            raise not_stored(self.name)
        return documents

    def order(self, count: int, epoch: int) -> Order:
        """Return the order of ``count`` windows in an epoch."""
        return Order(count, self._seed, epoch)

    def trainable(self, epoch: int, start: int) -> Iterator[tuple[int, Encoded]]:
        """Yield (epoch, document) of the documents with training pairs, forever.

        Raises:
            UserError: there is none in :data:`EPOCHS` epochs.
        """
        fruitless = 0
        while fruitless < EPOCHS:
            fruitless += 1
            for document in self.documents(epoch, start):
                if document.pairs:
                    fruitless = 0
                    yield epoch, document
            epoch, start = epoch + 1, 0
        raise self.without_text()

    def without_text(self) -> UserError:
        """Return the error of a lane without anything to train on."""
        return UserError(
            f"two passes over the documents of sequence {self.lane} of the global batch gave "
            "nothing to train on",
            valid=f"a dataset with text for all {self.lanes} sequences",
            key=self.name,
        )

    def changed(self, index: int) -> UserError:
        """Return the error of a document that is not what it was when the state was saved."""
        return UserError(
            "the dataset or the tokenizer is not what it was when the checkpoint was saved: "
            f"document {index} of sequence {self.lane} has become shorter",
            key=self.name,
        )

    def _example(self, document: Document) -> Example:
        nothing = Example(_NOTHING)
        if document.problem is not None:
            self.left_out.bad.append(document)
            return nothing
        if self._side is not None and not self._side.has(document):
            return nothing
        example = self._encoder.encode(document)
        if example is None:
            self.left_out.long += 1
            return nothing
        if len(example.tokens) == 0:
            self.left_out.empty += 1
        elif len(example.tokens) == 1:
            self.left_out.short += 1
        return example


def stored(source: LaneSource) -> StoredTokens | None:
    """Return the documents of a source if they are stored as tokens, otherwise None."""
    if not isinstance(source, DealtSource):
        return None
    documents: Any = source.documents()
    return documents if callable(getattr(documents, "between", None)) else None


def not_stored(name: str) -> UserError:
    """Return the error of text where stored tokens are needed; ``name`` is the source's key."""
    return UserError(
        f"windows are cut from stored tokens, and {name} has text",
        valid="concat, best_fit, none, or stored tokens (dataset=prepared, dataset=tokens)",
        key="data.packing",
        value="windows",
    )
