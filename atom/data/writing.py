"""Encode documents and write them into one token shard."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from atom.data.manifest import SUFFIXES, LeftOut, Shard, dtype_of, name_of
from atom.data.shards import DOCUMENT, MOST_ID
from atom.errors import RunError, UserError
from atom.io.files import opened
from atom.plugin import Document

_BATCH_DOCUMENTS = 1024
_BATCH_CHARACTERS = 1 << 20
"""Limits of a batch of documents that are encoded at once."""

MOST_REASONS = 20
"""Number of unreadable documents with a recorded reason."""

_CREATED = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that encodes documents as training does.

    Attributes:
        tokenizer: its ``encode(text, add_bos=, add_eos=)`` returns the ids of a document;
            ``encode_batch(texts, add_bos=, add_eos=)``, if it has one, those of several.
        vocab_size: all ids are below it.
    """

    tokenizer: Any
    vocab_size: int

    def encode(self, documents: Sequence[Document]) -> list[Sequence[int]]:
        """Return the ids of each document; none for a document without text.

        Raises:
            UserError: a document is stored as tokens already, or an id is out of range.
        """
        if stored := next((each for each in documents if each.tokens is not None), None):
            raise UserError(
                f"{stored.id} is stored as tokens",
                valid="a dataset of text",
                key="dataset.name",
            )
        found: list[Sequence[int]] = [() for _ in documents]
        if (
            record := next((each for each in documents if each.record is not None), None)
        ) is not None:
            raise UserError(
                f"{record.id} is a record, and token shards hold text",
                valid="a dataset of text",
                key="dataset",
            )
        texts = [(place, each) for place, each in enumerate(documents) if each.text]
        batch = getattr(self.tokenizer, "encode_batch", None)
        if callable(batch):
            # Most documents come whole: one group.
            for starts, ends in {(each.starts, each.ends) for _, each in texts}:
                alike = [
                    (p, each) for p, each in texts if (each.starts, each.ends) == (starts, ends)
                ]
                ids = batch([each.text for _, each in alike], add_bos=starts, add_eos=ends)
                for (place, _), these in zip(alike, ids, strict=True):
                    found[place] = these
            return found
        for place, each in texts:
            found[place] = self.tokenizer.encode(each.text, add_bos=each.starts, add_eos=each.ends)
        return found

    def check(self, tokens: np.ndarray[Any, Any]) -> None:
        """Refuse ids that are not in the vocabulary."""
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            wrong = int(tokens.max()) if int(tokens.min()) >= 0 else int(tokens.min())
            raise UserError(
                f"it returns the id {wrong:,}, and its vocabulary has {self.vocab_size:,}",
                key="tokenizer.name",
            )


@dataclass
class Counts:
    """Numbers of documents, tokens, and bytes of text, written so far."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, more: Counts) -> None:
        """Add the counts of a batch."""
        self.documents += more.documents
        self.tokens += more.tokens
        self.bytes += more.bytes


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn the failure to write a file of the shards into a :class:`RunError`."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or folder} cannot be written: {error.strerror or error}; what is "
            "done is kept, and the same command resumes"
        ) from None


@dataclass
class _File:
    """A file being written, with its digest and size so far."""

    stream: BinaryIO
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0

    def write(self, content: bytes) -> None:
        self.stream.write(content)
        self.digest.update(content)
        self.size += len(content)

    def finish(self) -> str:
        self.stream.flush()
        os.fsync(self.stream.fileno())
        return str(self.digest.hexdigest())


def write_shard(
    folder: Path,
    unfinished: Path,
    number: int,
    documents: Iterable[Document],
    encoder: Encoder,
    told: Callable[[Counts], None],
) -> tuple[Shard, LeftOut]:
    """Write the files of a shard; they have their names when they are complete.

    Args:
        folder: the folder of the shards.
        unfinished: a folder beside them, for files that are being written.
        number: number of the shard.
        documents: its documents, in order.
        encoder: the tokenizer.
        told: called with the counts of each batch.
    """
    dtype = np.dtype(dtype_of(encoder.vocab_size)).newbyteorder("<")
    total, left_out = Counts(), _LeftOut()
    with ExitStack() as stack:
        with writable(folder):
            tokens_file, records_file, ids_file = files = [
                _File(stack.enter_context(os.fdopen(opened(path, _CREATED), "wb")))
                for path in (unfinished / name_of(number, kind) for kind in SUFFIXES)
            ]
        for batch in _batches(documents):
            encoded = encoder.encode(batch)
            sizes = np.fromiter(map(len, encoded), dtype=np.int64, count=len(batch))
            now = Counts(len(batch), int(sizes.sum()), sum(map(_text_bytes, batch)))
            tokens = np.fromiter(chain.from_iterable(encoded), dtype=np.int64, count=now.tokens)
            encoder.check(tokens)
            ids = [_id(each) for each in batch]
            records = np.empty(len(batch), dtype=DOCUMENT)
            records["tokens"] = total.tokens + np.cumsum(sizes)
            records["ids"] = ids_file.size + np.cumsum([len(id) for id in ids])
            with writable(folder):
                tokens_file.write(tokens.astype(dtype).tobytes())
                records_file.write(records.tobytes())
                ids_file.write(b"".join(ids))
            left_out.add(batch, sizes.tolist())
            total.add(now)
            told(now)
        with writable(folder):
            digests = [file.finish() for file in files]
    with writable(folder):
        for kind in SUFFIXES:
            (unfinished / name_of(number, kind)).replace(folder / name_of(number, kind))
    shard = Shard(
        documents=total.documents,
        tokens=total.tokens,
        bytes=total.bytes,
        ids_bytes=ids_file.size,
        sha256=digests,
    )
    return shard, left_out.result()


def _id(document: Document) -> bytes:
    """Return the id of a document in UTF-8, cut at its maximum length."""
    whole = document.id.encode("utf-8", "backslashreplace")
    return whole if len(whole) <= MOST_ID else whole[:MOST_ID].decode(errors="ignore").encode()


def _text_bytes(document: Document) -> int:
    return len(document.text.encode("utf-8", "surrogatepass"))


class _LeftOut:
    def __init__(self) -> None:
        self._empty = self._short = self._bad = 0
        self._reasons: list[str] = []

    def add(self, documents: Sequence[Document], sizes: Sequence[int]) -> None:
        for document, size in zip(documents, sizes, strict=True):
            if document.problem is not None:
                self._bad += 1
                if len(self._reasons) < MOST_REASONS:
                    self._reasons.append(f"{document.id}: {document.problem}"[:500])
            elif not document.text:
                self._empty += 1
            elif size < 2:
                self._short += 1

    def result(self) -> LeftOut:
        return LeftOut(empty=self._empty, short=self._short, bad=self._bad, reasons=self._reasons)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
