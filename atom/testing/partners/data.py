"""Text that depends on the seed alone, and the size of its vocabulary. No torch here."""

from __future__ import annotations

import random
from collections.abc import Iterator

from atom.plugin import Document, PreparedTokenizer, TokenizerContext
from atom.testing.partners import VOCAB_SIZE

DOCUMENTS = 512
"""In one pass over the data."""

WORDS = "a run is what plugins make of one config and many ranks train on it".split()  # noqa: SIM905


class Sentences:
    """A :class:`atom.plugin.DocumentSource`. Its documents are shorter than most sequences, so that
    batches have document boundaries in them."""

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


def prepare(_config: None, _context: TokenizerContext) -> PreparedTokenizer:
    return PreparedTokenizer(vocab_size=VOCAB_SIZE)
