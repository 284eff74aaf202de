"""Read the sequences of a validation set: the same at every time, for every run and layout.

The documents are read once, in an order of their own that depends on no seed of the run, and cut
where a sequence ends, whatever ``data.packing`` is. Special tokens are read and not predicted, so
that losses and bytes are those of text. Under an objective, documents are not cut, and what it
trains on is predicted.

Shape suffixes: S = sequences of this rank, L = tokens per sequence, V = vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from atom.data import numbering
from atom.data.documents import TextEncoder
from atom.data.held_out import Side
from atom.data.lanes import IGNORED, Lane, Reading, Row, Sources
from atom.data.packing import Packing, Part
from atom.errors import UserError
from atom.plugin import DocumentEncoder, LaneSource

SEED = 0
"""Seed of the order of the documents."""

Ids = npt.NDArray[np.int32]

Digests = tuple[bytes, ...]


@dataclass(frozen=True)
class Texts:
    """The documents of a set.

    Attributes:
        source: a dataset.
        key: its key.
        side: its documents that are in the set; None: all.
    """

    source: LaneSource
    key: str
    side: Side | None = None


@dataclass(frozen=True)
class ValidationSet:
    """The sequences of a set that one rank evaluates, and what is known of all of them.

    Attributes:
        inputs: [S, L].
        labels: [S, L]; :data:`atom.data.lanes.IGNORED` where nothing is predicted.
        positions: [S, L].
        sequences: number of sequences on all ranks.
        tokens: tokens that are predicted in all of them.
        bytes: their bytes; None if unknown.
        digest: of all sequences, 16 hexadecimal digits.
        examples: examples of the objective in all of them; None: its loss is of tokens.
        sequences_here: digests of the examples' sequences on this rank, by their numbers.
    """

    inputs: Ids
    labels: npt.NDArray[Any]
    positions: Ids
    sequences: int
    tokens: int
    bytes: int | None
    digest: str
    examples: int | None = None
    sequences_here: Digests = ()

    def rows(self, begin: int, size: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the inputs, labels and positions of ``size`` sequences, each [size, L]; after the
        last one there is padding, of which nothing is predicted.
        """
        length = self.inputs.shape[1]
        fillers = (np.array(0), np.array(IGNORED), np.arange(length))
        for kept, filler in zip((self.inputs, self.labels, self.positions), fillers, strict=True):
            array = np.empty((size, length), dtype=np.int64)
            array[:] = filler
            found = kept[begin : begin + size]
            array[: len(found)] = found
            yield array


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of text that ids stand for.

    Attributes:
        special: ids that are no text.
        lengths: [V]: bytes of each id, -1 if unknown; None if the tokenizer does not tell.
    """

    special: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, tokenizer: Any) -> TokenBytes:
        """Return those of a tokenizer: its ``byte_lengths()``, if it has that, BOS and EOS."""
        ids = (getattr(tokenizer, name, None) for name in ("bos_id", "eos_id"))
        special = {number for number in ids if number is not None}
        tell = getattr(tokenizer, "byte_lengths", None)
        told: Sequence[int | None] | None = tell() if callable(tell) else None
        if told is None:
            return cls(np.array(sorted(special), dtype=np.int64), None)
        lengths = np.array([-1 if size is None else size for size in told], dtype=np.int64)
        lengths[sorted(special)] = 0
        return cls(np.flatnonzero(lengths == 0), lengths)

    def count(self, ids: Ids) -> int | None:
        """Return the bytes of some ids; None if unknown for one of them."""
        if self.lengths is None or (len(ids) and ids.max() >= len(self.lengths)):
            return None
        sizes = self.lengths[ids]
        return None if (sizes < 0).any() else int(sizes.sum())


def read(
    source: LaneSource,
    tokenizer: Any,
    *,
    encoder: DocumentEncoder | None = None,
    tokens: int,
    seq_len: int,
    vocab_size: int | None = None,
    side: Side | None = None,
    sequences: int | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> ValidationSet:
    """Read a validation set; keep sequences ``rank``, ``rank + ranks``, …

    Args:
        source: the documents.
        tokenizer: the tokenizer.
        encoder: converts documents to tokens; None: as text.
        tokens: tokens to read, rounded up to whole sequences; fewer if the source ends.
        seq_len: L.
        vocab_size: an id beyond it is refused.
        side: the documents to read; None: all.
        sequences: sequences of an example, whose labels are numbered; None: labels are ids.

    Raises:
        UserError: there is nothing to predict, or an id is out of range.
    """
    text = TokenBytes.of(tokenizer)
    unpredicted = text.special if encoder is None else np.empty(0, dtype=np.int64)
    packing: Packing = "concat" if encoder is None else "best_fit"
    encoder = TextEncoder(tokenizer) if encoder is None else encoder
    found = hashlib.blake2b(digest_size=8)
    kept: list[npt.NDArray[Any]] = []
    count = size = rows = examples = 0
    known = True
    here: list[bytes] = []
    reading = _reading(source, tokens, seq_len, vocab_size, side, packing, sequences)
    for row, digests in _rows(reading, encoder):
        row.labels[np.isin(row.labels, unpredicted)] = IGNORED
        ids = np.stack(row).astype(np.int32)
        found.update(ids.astype("<i4").tobytes())
        predicted = ids[1][ids[1] != IGNORED]
        count += len(predicted)
        bytes_here = text.count(predicted)
        known &= bytes_here is not None
        size += bytes_here or 0
        if rows % ranks == rank:
            labels = numbering.numbered(row.labels, len(here))
            kept.append(ids if sequences is None else np.stack([ids[0], labels, ids[2]]))
            here += digests
        rows += 1
        examples += len(digests) // (sequences or 1)
    if count == 0:
        raise UserError("has no text to validate on", valid="a dataset with text", key="dataset")
    shares = np.stack(kept) if kept else np.empty((0, 3, seq_len), dtype=np.int32)
    return ValidationSet(
        inputs=shares[:, 0],
        labels=shares[:, 1],
        positions=shares[:, 2],
        sequences=rows,
        tokens=count,
        bytes=size if known else None,
        digest=found.hexdigest(),
        examples=None if sequences is None else examples,
        sequences_here=tuple(here),
    )


def _reading(
    source: LaneSource,
    tokens: int,
    seq_len: int,
    vocab_size: int | None,
    side: Side | None,
    packing: Packing,
    sequences: int | None,
) -> Reading:
    """Return how the sequences of a set are read: one lane, of as many steps as sequences."""
    reading = Reading(
        source,
        seed=SEED,
        lanes=1,
        seq_len=seq_len,
        steps=-(-tokens // seq_len),
        packing=packing,
        vocab_size=vocab_size,
        side=side,
        sequences=sequences,
    )
    # A mixture's max_repetitions are those of a run.
    return replace(reading, measured=frozenset(Sources(reading).names))


def _rows(reading: Reading, encoder: DocumentEncoder) -> Iterator[tuple[Row, list[bytes]]]:
    """Yield the sequences, with the digests of the examples' sequences in them, until a document
    would be read again.
    """
    lane = Lane(0, reading, Sources(reading), encoder)
    for _ in range(reading.steps):
        parts = lane.parts()
        first = [part for part in parts if part.epoch == 0]
        if first:
            row = Row(*np.empty((3, reading.seq_len), dtype=np.int64))
            lane.write(row, first)
            yield row, lane.digests
        if _ended(parts):
            return


def _ended(parts: list[Part]) -> bool:
    """Return whether parts of documents come from a second reading of a source."""
    return any(part.epoch for part in parts)
