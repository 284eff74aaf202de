"""Generate text that depends only on the seed, and its vocabulary size, without torch."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from atom.plugin import Document, PreparedTokenizer, TokenizerContext
from atom.testing.partners import VOCAB_SIZE

DOCUMENTS = 512
"""Documents per epoch."""

WORDS = "a run is what plugins make of one config and many ranks train on it".split()  # noqa: SIM905


class Sentences:
    """A :class:`atom.plugin.DocumentSource` with documents shorter than most sequences, so that
    batches contain document boundaries."""

    def check(self) -> str:
        return "sentences-1"

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        for number in range(lane + start * lanes, DOCUMENTS, lanes):
            words = random.Random(f"{seed}:{epoch}:{number}")
            text = " ".join(words.choices(WORDS, k=words.randint(4, 16)))
            yield Document(text=text, id=f"sentence {number}")


def source(_config: None) -> Sentences:
    return Sentences()


class Given(BaseModel):
    """Records to read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    records: list[dict[str, Any]]


class Records:
    """The records of the parameters."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._documents = [document(number, record) for number, record in enumerate(records)]

    def check(self) -> str:
        texts = "".join(document.text for document in self._documents)
        return hashlib.sha256(texts.encode()).hexdigest()

    def documents(self) -> list[Document]:
        return self._documents


def document(number: int, record: Mapping[str, Any]) -> Document:
    """Return a record as a document."""
    return Document(json.dumps(record), f"record {number}", record=record)


def given(config: Given) -> Records:
    return Records(config.records)


def prepare(_config: None, _context: TokenizerContext) -> PreparedTokenizer:
    return PreparedTokenizer(vocab_size=VOCAB_SIZE)
