"""Prepare token shards from a source of text: in parallel, resumable, with reproducible bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from atom.data import workers
from atom.data.folder import UNFINISHED, Folder
from atom.data.manifest import (
    LeftOut,
    Manifest,
    Provenance,
    Shard,
    content_digest,
    dtype_of,
    name_of,
)
from atom.data.splitting import Recipe, numbered
from atom.data.writing import MOST_REASONS, Counts, Encoder, writable, write_shard
from atom.errors import RunError
from atom.io.process import call
from atom.plugin import LaneSource

Open = Callable[[], LaneSource]


@dataclass(frozen=True)
class Progress:
    """The progress of a preparation.

    Attributes:
        documents: number of documents in shards so far.
        total: number of all documents; None for a stream.
        now: counts of this start alone.
    """

    documents: int
    total: int | None
    now: Counts


def prepare(
    folder: Folder,
    recipe: Recipe,
    open_source: Open,
    encoder: Encoder,
    count: int,
    told: Callable[[Progress], None],
) -> None:
    """Write the shards that are not finished yet.

    Args:
        folder: the folder, claimed and begun.
        recipe: the content of the shards.
        open_source: opens the source; called in each process.
        encoder: the tokenizer.
        count: number of processes, which are forked: the caller must have no threads.
        told: called several times a second, for the first time after the processes have started.

    Raises:
        RunError: a file cannot be written, or a process was killed; finished shards are kept.
        UserError: a document cannot be read.
    """
    done = {number: folder.recorded(recipe, number) for number in range(recipe.shards)}
    before = sum(found[0].documents for found in done.values() if found is not None)
    now = Counts()

    def tell(counts: Counts | None) -> None:
        now.add(counts or Counts())
        told(Progress(before + now.documents, recipe.documents, now))

    def work() -> workers.Work[Counts]:
        source = open_source()

        def write(number: int, told: Callable[[Counts], None]) -> None:
            documents, path = recipe.read(source, number), folder.path
            shard, left_out = write_shard(path, path / UNFINISHED, number, documents, encoder, told)
            with writable(path):
                folder.record(number, shard, left_out)

        return write

    waiting = [number for number, found in done.items() if found is None]
    workers.run(work, waiting, count, tell)


def finish(folder: Folder, recipe: Recipe, open_source: Open, provenance: Provenance) -> Manifest:
    """Write the manifest, after all shards.

    Raises:
        UserError: more documents are unreadable than the dataset tolerates.
    """
    shards: list[Shard] = []
    parts: list[LeftOut] = []
    folder.refresh()
    for number in range(recipe.shards):
        if (found := folder.recorded(recipe, number)) is None:
            raise RunError(f"{folder.place / name_of(number, 'tokens')} has been changed meanwhile")
        shards.append(found[0])
        parts.append(found[1])
    left_out = _together(parts)
    if left_out.bad and recipe.documents is not None:
        # Each process has counted its own; one that reads all of them applies the limit.
        call(partial(_read_again, folder, recipe, open_source))
    dtype = dtype_of(recipe.tokenizer.vocab_size)
    manifest = Manifest(
        digest=content_digest(dtype, recipe.tokenizer.digest, shards),
        dtype=dtype,
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        left_out=left_out,
        tokenizer=recipe.tokenizer,
        source=recipe.source,
        lanes=recipe.lanes,
        provenance=provenance,
        shards=shards,
    )
    folder.finish(manifest)
    return manifest


def _together(parts: Iterable[LeftOut]) -> LeftOut:
    empty = short = bad = 0
    reasons: list[str] = []
    for part in parts:
        empty, short, bad = empty + part.empty, short + part.short, bad + part.bad
        reasons += part.reasons[: MOST_REASONS - len(reasons)]
    return LeftOut(empty=empty, short=short, bad=bad, reasons=reasons)


def _read_again(folder: Folder, recipe: Recipe, open_source: Open) -> None:
    """Read the documents without tokens in one process; the source refuses too many bad ones."""
    documents = numbered(open_source())
    for number in range(recipe.shards):
        ends = folder.records(number)["tokens"]
        for row in np.flatnonzero(np.diff(ends, prepend=np.uint64(0)) == 0).tolist():
            documents[number * recipe.shard_documents + row]
