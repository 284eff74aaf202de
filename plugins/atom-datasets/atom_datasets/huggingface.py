"""``huggingface``: stream a dataset from the Hub, without downloading it first."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from atom.data.order import permutation
from atom.errors import UserError
from atom.plugin import Contents, Document, SourceContext
from atom_datasets import admitted, content, identity, labels, patterns, saved
from atom_datasets.bounding import bound
from atom_datasets.compression import let_streams_decompress
from atom_datasets.config import HuggingFace
from atom_datasets.finding import Tally, find
from atom_datasets.leading_out import Links
from atom_datasets.links import linked
from atom_datasets.quiet import quiet
from atom_datasets.streaming import RECORD, no_column, read_only, read_records

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]

_ROWS = 256
"""Rows per read."""

_LINKS = re.compile(r"\S*/atom_datasets/[0-9a-f]{32}\.d")
"""The path of a folder of links, as in messages: see :mod:`atom_datasets.links`."""

_LOOKED_AT = 100_000
"""Rows searched for text before a run starts."""


def source(config: HuggingFace, context: SourceContext | None = None) -> HuggingFaceSource:
    """Return the source that ``config`` describes; the Hub is contacted on first use."""
    return HuggingFaceSource(
        config.path,
        config.subset,
        config.split,
        config.text_field,
        config.revision,
        config.max_bytes,
        config.links,
        patterns.listed(config.data_files),
        config.licence,
        config.origin,
        context is not None and context.records,
    )


@dataclass(frozen=True)
class HuggingFaceSource:
    """The rows of a streamed dataset; its files (shards) can only be read from their beginning.

    An epoch distributes whole shards to lanes, in an order that depends on the seed and the epoch.
    If there are fewer shards than lanes, neighbouring lanes share one: each takes every n-th of its
    rows. Rows of a shard stay in order. To start in the middle, a lane reads the rows before.
    """

    path: str
    subset: str | None
    split: str
    text_field: str
    revision: str | None
    max_bytes: int | None = None
    links: Links = "data"
    data_files: tuple[str, ...] = ()
    licence: str | None = None
    origin: str | None = None
    records: bool = False

    def check(self) -> str:
        """Return a digest of the dataset: of its commit, or of its files' content.

        Raises:
            UserError: the dataset is unavailable or empty, or lacks the text column.
        """
        if self.records and self.text_field != (default := _default("text_field")):
            raise UserError(
                "has no effect on records, which an objective reads whole",
                valid=default,
                key="dataset.text_field",
                value=self.text_field,
            )
        rows, text = 0, False
        with quiet(), _explained(self):
            for row in islice(_opened(self).stream, _LOOKED_AT):
                rows += 1
                if text := bool(_text(row.get(self._column), self._column)):
                    break
        if not text and rows < _LOOKED_AT:
            problem = "there is no text in its column" if rows else "it has no rows"
            raise UserError(problem, key="dataset.path", value=self.path)
        kind = ("records",) if self.records else ()
        return identity.digest(self.parts().values(), self.split, self.text_field, *kind)

    @property
    def _column(self) -> str:
        return RECORD if self.records else self.text_field

    def parts(self) -> dict[str, str]:
        """Return the identity of each file by its name."""
        read = _opened(self).read
        return identity.addressed(read) or {self.path: f"{self.subset} {self.revision}"}

    def contents(self) -> Contents:
        """Return the number of files, the files of a folder that no split reads, and the labels."""
        opened = _opened(self)
        left_out = opened.left_out.phrases()
        if self.revision is not None and Path(self.path).expanduser().is_dir():
            left_out += (f"dataset.revision={self.revision} (a folder has no revisions)",)
        return Contents(
            files=opened.files,
            left_out=left_out,
            licence=self.licence,
            origin=self.origin or labels.commit(opened.read),
        )

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        """Yield the documents of ``lane``; skip ``start`` of them by reading.

        Raises:
            UserError: a record or a file is damaged.
        """
        stream, id = _opened(self).stream, "its start"
        rows = chain.from_iterable(
            _rows(stream, slice, self._column)
            for slice in dealt(stream.num_shards, lane, lanes, seed=seed, epoch=epoch)
        )
        try:
            for shard, row, value in islice(rows, start, None):
                id = f"{self.path}/{self.split} shard {shard} row {row}"
                text = _text(value.as_py(), self._column)
                yield Document(text, id, record=json.loads(text) if self.records else None)
        except ValueError as error:  # from Arrow, pandas and UTF-8; network errors are OSError
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"{self.path}/{self.split} is damaged near {id} ({reason})", key="dataset.path"
            ) from None


@dataclass(frozen=True)
class Slice:
    """Rows ``first``, ``first + step``, … of a shard."""

    shard: int
    first: int = 0
    step: int = 1


def dealt(shards: int, lane: int, lanes: int, *, seed: int, epoch: int) -> list[Slice]:
    """Return the slices that ``lane`` reads in epoch ``epoch``."""
    order = [int(shard) for shard in permutation(shards, seed, epoch)]
    if shards >= lanes:
        return [Slice(shard) for shard in order[lane::lanes]]
    # Neighbours share a shard: a rank has neighbouring lanes, and then opens fewer shards.
    place = lane * shards // lanes
    sharing = [other for other in range(lanes) if other * shards // lanes == place]
    firsts = permutation(len(sharing), seed, epoch)
    return [Slice(order[place], int(firsts[sharing.index(lane)]), len(sharing))]


def _rows(
    stream: datasets.IterableDataset, slice: Slice, text_field: str
) -> Iterator[tuple[int, int, pa.Scalar]]:
    """Yield (shard, row, text as an Arrow scalar), decoding only the rows of the slice."""
    shard = stream.shard(num_shards=stream.num_shards, index=slice.shard)
    row = 0
    for table in shard.select_columns([text_field]).with_format("arrow").iter(batch_size=_ROWS):
        column = table.column(text_field)
        for offset in range((slice.first - row) % slice.step, len(column), slice.step):
            yield slice.shard, row + offset, column[offset]
        row += len(column)


@dataclass(frozen=True)
class _Opened:
    stream: datasets.IterableDataset
    read: tuple[str | Path, ...]
    """The known files of the split: paths, and addresses of files elsewhere."""

    files: int | None
    left_out: Tally


@lru_cache(maxsize=4)
def _opened(source: HuggingFaceSource) -> _Opened:
    left_out = Tally()
    let_streams_decompress()
    with quiet(), _explained(source):
        builder, links = _builder(source, left_out)
        admitted.check(builder, source.path, links or None)
        if source.records:
            read_records(builder)
        else:
            read_only(builder, source.text_field)
        stream = builder.as_streaming_dataset(split=source.split)
        files = builder.config.data_files
        if files is None:
            return _Opened(stream, (), None, left_out)
        patterns.check_used(source.data_files, files[source.split], source.path)
        read = tuple(links.get(name, name) for name in files[source.split])
        for split, names in files.items():
            for name in names:
                links.pop(name, None)
                if split != source.split:
                    left_out.add("files of other splits", Path(name).name)
        for path in links.values():
            if path.name.lower() != "readme.md":  # it defines the splits
                left_out.add("files that are in no split", path.name)
        return _Opened(stream, read, len(read), left_out)


def _builder(
    source: HuggingFaceSource, left_out: Tally
) -> tuple[datasets.DatasetBuilder, dict[str, Path]]:
    """Return the builder of the dataset, and a folder's files by the links to them."""
    import datasets

    path = source.path
    admitted.check_name(path)
    patterns.check_inside(source.data_files)
    links: dict[str, Path] = {}
    folder = Path(path).expanduser()
    if folder.is_dir():
        cache = Path(datasets.config.HF_DATASETS_CACHE) / "atom_datasets"
        found = find([path], None, "", source.links)
        left_out.kinds.update(found.left_out.kinds)
        admitted.check_card(folder)
        files = saved.tables(found.files)
        for file in found.files:
            content.check_pointer(file)
            if file not in files:
                left_out.add("files that are in no split", file.name)
        place, links = linked(folder, files, cache)
        path = str(place)
    bound(path if links else f"hf://datasets/{path}@", source.max_bytes)
    builder = datasets.load_dataset_builder(
        path,
        source.subset,
        data_files={source.split: list(source.data_files)} if source.data_files else None,
        revision=source.revision,
    )
    return builder, links


def _columns(source: HuggingFaceSource) -> list[str]:
    """Return the names of all columns that can be determined."""
    builder, links = _builder(source, Tally())
    admitted.check(builder, source.path, links or None)
    stream = builder.as_streaming_dataset(split=source.split)
    return stream.column_names or list(next(iter(stream), {}))


@contextmanager
def _explained(source: HuggingFaceSource) -> Iterator[None]:
    """Convert errors at the start to a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # network, Hub and datasets each raise their own types
        names: list[str] = []
        with suppress(Exception):
            names = _columns(source)
        if names and not source.records and source.text_field not in names:
            raise no_column(source.text_field, names) from None
        if type(error).__name__ == "DataFilesNotFoundError":
            patterns.check_used(source.data_files, (), source.path)
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        reason = _LINKS.sub(lambda _: source.path, reason)
        if isinstance(error, io.UnsupportedOperation):
            reason = (
                "it has tables compressed with zstd, which are read whole; valid: dataset=local "
                "with a folder of them, or files decompressed"
            )
        elif "Parquet magic bytes" in reason:
            reason += "; dataset=local reads files that are compressed as a whole"
        raise UserError(
            f"cannot be streamed: {reason}", key="dataset.path", value=source.path
        ) from error


def _default(name: str) -> str:
    return str(HuggingFace.model_fields[name].default)


def _text(value: object, text_field: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"holds {type(value).__name__} and no text",
            key="dataset.text_field",
            value=text_field,
        )
    return value or ""
