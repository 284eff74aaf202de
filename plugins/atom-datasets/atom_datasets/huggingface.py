"""``huggingface``: a dataset of the Hub, streamed, so that nothing is downloaded ahead."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING

from atom.errors import UserError, nearest
from atom.plugin import Document
from atom_datasets.config import HuggingFace
from atom_datasets.dealing import permutation
from atom_datasets.quiet import quiet

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]

_ROWS = 256
"""Rows read at a time."""


def source(config: HuggingFace) -> HuggingFaceSource:
    """Return the source that ``config`` describes. The Hub is asked when it is used."""
    return HuggingFaceSource(
        config.path, config.subset, config.split, config.text_field, config.revision
    )


@dataclass(frozen=True)
class HuggingFaceSource:
    """The rows of a streamed dataset, whose files (shards) can only be read from their beginning.

    A pass deals out whole shards, in an order that depends on the seed and the pass. Where there
    are fewer shards than lanes, neighbouring lanes share one: each takes every n-th of its rows.
    Within a shard rows stay in order. To start somewhere, a lane reads what comes before.
    """

    path: str
    subset: str | None
    split: str
    text_field: str
    revision: str | None

    def check(self) -> str:
        """Return a digest of the dataset's name, subset, split and revision.

        Raises:
            UserError: the dataset cannot be had, is empty, or has no such column of text.
        """
        with quiet():
            row = next(iter(_stream(self)), None)
        if row is None:
            raise UserError("it has no rows", key="dataset.path", value=self.path)
        if self.text_field not in row:
            raise UserError(
                f"it has no such column; {nearest(self.text_field, row)}",
                key="dataset.text_field",
                value=self.text_field,
            )
        _text(row[self.text_field], self.text_field)
        recipe = [self.path, self.subset, self.split, self.revision, self.text_field]
        return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        """Yield the documents of ``lane``, skipping ``start`` of them as they are read."""
        stream = _stream(self)
        rows = chain.from_iterable(
            _rows(stream, slice, self.text_field)
            for slice in dealt(stream.num_shards, lane, lanes, seed=seed, epoch=epoch)
        )
        for shard, row, value in islice(rows, start, None):
            text = _text(value.as_py(), self.text_field)
            yield Document(text, id=f"{self.path}/{self.split} shard {shard} row {row}")


@dataclass(frozen=True)
class Slice:
    """Rows ``first``, ``first + step``, … of a shard."""

    shard: int
    first: int = 0
    step: int = 1


def dealt(shards: int, lane: int, lanes: int, *, seed: int, epoch: int) -> list[Slice]:
    """Return what ``lane`` reads in the pass ``epoch``."""
    order = [int(shard) for shard in permutation(shards, seed, epoch)]
    if shards >= lanes:
        return [Slice(shard) for shard in order[lane::lanes]]
    # Neighbours share a shard because a rank has neighbouring lanes, and then opens fewer shards.
    place = lane * shards // lanes
    sharing = [other for other in range(lanes) if other * shards // lanes == place]
    firsts = permutation(len(sharing), seed, epoch)
    return [Slice(order[place], int(firsts[sharing.index(lane)]), len(sharing))]


def _rows(
    stream: datasets.IterableDataset, slice: Slice, text_field: str
) -> Iterator[tuple[int, int, pa.Scalar]]:
    """Yield (shard, row, text as Arrow has it), decoding no row that is not read in the end."""
    shard = stream.shard(num_shards=stream.num_shards, index=slice.shard)
    row = 0
    for table in shard.select_columns([text_field]).with_format("arrow").iter(batch_size=_ROWS):
        column = table.column(text_field)
        for offset in range((slice.first - row) % slice.step, len(column), slice.step):
            yield slice.shard, row + offset, column[offset]
        row += len(column)


@lru_cache(maxsize=4)
def _stream(source: HuggingFaceSource) -> datasets.IterableDataset:
    import datasets

    try:
        with quiet():
            return datasets.load_dataset(
                source.path,
                source.subset,
                split=source.split,
                revision=source.revision,
                streaming=True,
            )
    except Exception as error:  # of the network, of the Hub, of datasets: each has its own
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(
            f"cannot be streamed: {reason}", key="dataset.path", value=source.path
        ) from error


def _text(value: object, text_field: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"holds {type(value).__name__} and no text",
            key="dataset.text_field",
            value=text_field,
        )
    return value or ""
