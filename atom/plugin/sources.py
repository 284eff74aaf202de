"""Define documents, and the sources that return them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # listing plugins imports no numpy
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "Contents",
    "Document",
    "DocumentSource",
    "Documents",
    "IndexedSource",
    "LaneSource",
    "MixedSource",
    "Mixture",
    "Source",
    "Stage",
    "StoredTokens",
]


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of text. ``id`` identifies it for people (a path, a row). A long text can come in
    parts: ``starts`` and ``ends`` are true for the first and the last part. ``problem`` says why a
    tolerated document could not be read; it has no text then. ``tokens`` are the ids of a document
    that is stored as tokens, BOS and EOS included: a one-dimensional array of integers, trained on
    as it is; ``text`` is then not used. ``record`` is a document with fields, such as the messages
    of a conversation, as parsed JSON; an objective reads it, and ``text`` is its JSON."""

    text: str
    id: str
    starts: bool = True
    ends: bool = True
    problem: str | None = None
    tokens: Any = field(default=None, compare=False, repr=False)
    record: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The content of a source, for people: numbers of files, documents and tokens per epoch, None
    if unknown without reading everything. ``left_out`` has a phrase for each kind of content that
    is not read, or not read as it stands: ``"hidden files: 2 (.a, .b)"``. ``sources`` are the
    contents of a mixture's sources by name; source ``b`` of a mixture ``a`` is ``a.b``.
    ``licence`` and ``origin`` are labels; None if unknown."""

    files: int | None = None
    documents: int | None = None
    left_out: tuple[str, ...] = ()
    tokens: int | None = None
    sources: Mapping[str, Contents] = field(default_factory=dict)
    licence: str | None = None
    origin: str | None = None


class Documents(Protocol):
    """Documents with random access, numbered from 0. ATOM calls them from one thread at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Document: ...


class StoredTokens(Documents, Protocol):
    """Documents stored as tokens, one after another, in shards."""

    def shard_sizes(self) -> Sequence[int] | npt.NDArray[np.int64]:
        """Return the number of tokens of each shard."""
        ...

    def between(self, shard: int, begin: int, end: int) -> Sequence[tuple[int, int, Document]]:
        """Return the documents with tokens in ``begin`` to ``end`` - 1 of a shard.

        Returns:
            For each document its index in all, the position of its first token in the shard, and
            the document, whole.
        """
        ...


class Source(Protocol):
    """A source of documents. It is an :class:`IndexedSource` or a :class:`LaneSource`.

    It may also have a method ``contents() -> Contents``, called after :meth:`check`; the result is
    shown as the run starts. And ``parts() -> Mapping[str, str]``, called after :meth:`check`: name
    -> digest of each of its files, so that a message can name the files that changed since a
    checkpoint. A source of documents that are stored as tokens has ``tokenizer() -> str | None``,
    called after :meth:`check`: the digest of the tokenizer that made them. A run with another
    tokenizer is refused.
    """

    def check(self) -> str:
        """Check that there is something to read, and return a digest of the content.

        The digest depends only on the documents and their order, not on their location or time
        stamps. A run resumes from a checkpoint only if the digest is the one saved with it.

        Raises:
            atom.errors.UserError: there is nothing to read.
        """
        ...


class IndexedSource(Source, Protocol):
    """A source with random access: ATOM shuffles its documents and deals them to lanes."""

    def documents(self) -> Documents:
        """Return the documents, in an order that never changes. Called after :meth:`check`.

        Called often: keep what is costly to open.
        """
        ...


class LaneSource(Source, Protocol):
    """A source that can only be read from a beginning, and that deals its documents itself.

    A batch of G sequences is G *lanes*, each reading its own documents, so that a rank reads only
    the lanes it trains on, and a checkpoint holds one position per lane and no tokens.
    """

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        """Yield documents ``start``, ``start + 1``, … of ``lane`` in one epoch.

        An epoch is a list of documents: each once or, in a weighted epoch, as often as ``seed`` and
        ``epoch`` alone determine. Any number of lanes partitions the list: each entry is in exactly
        one lane, provided there are at least as many entries as lanes. The order within a lane
        depends only on ``seed``, ``epoch``, ``lane`` and ``lanes``.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a run with its own mixture.

    Attributes:
        name: its name, for people.
        step: the first step, counted from 0.
        weights: source -> its share of the sequences, and so of the tokens; any positive scale.
            Sources left out have none.
    """

    name: str
    step: int
    weights: Mapping[str, float | Fraction]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Sources that a run mixes.

    Attributes:
        sources: name -> source; a source can be a mixture, too, of one stage.
        stages: by their first step; the first begins at step 0.
        max_epochs: source -> how often it may be read at most. If the source reports its tokens, a
            run that would read it more often is refused; otherwise the run stops at the step at
            which one of its sequences would begin a further epoch.
    """

    sources: Mapping[str, DocumentSource]
    stages: tuple[Stage, ...]
    max_epochs: Mapping[str, float] = field(default_factory=dict)


class MixedSource(LaneSource, Protocol):
    """A source that is a mixture. ATOM chooses the source of each sequence by the weights, exactly
    in every step; ``lane``, which trains tokenizers, may mix documents.

    Its :meth:`check` returns a digest of its sources' digests, without weights and stages, which
    are compared as settings (see ``Dataset.changed``). Errors name a source
    ``dataset.sources.NAME``. It may have a method ``ordered(digest) -> str``: a digest of what
    ``lane`` yields, so that a tokenizer that was trained with other weights is not reused.
    """

    def digests(self) -> Mapping[str, str]:
        """Return the digest of each source by name, those of nested mixtures as ``a.b``. Called
        after :meth:`check`.
        """
        ...

    def mixture(self, *, tokens_per_step: int, steps: int, begin: int) -> Mixture:
        """Return the mixture of a run.

        Args:
            tokens_per_step: tokens of the global batch.
            steps: steps of the run.
            begin: steps before the first that reads the mixture: 0, except in a run that begins
                from a checkpoint of another one with other data.

        Raises:
            atom.errors.UserError: the stages do not fit the run.
        """
        ...


DocumentSource = IndexedSource | LaneSource | MixedSource
"""What a dataset's ``source`` returns."""
