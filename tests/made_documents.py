"""Documents of chosen lengths, and a tokenizer that makes an id of each byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torchtitan.components.tokenizer import BaseTokenizer

from atom.plugin import Document

BOS, EOS = 256, 257


class Bytes(BaseTokenizer):
    """Ids are bytes; ``encoded`` counts the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.eos_id = EOS
        self.encoded = 0

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]:
        self.encoded += 1
        return [BOS] * add_bos + list(text.encode()) + [EOS] * add_eos

    def decode(self, ids: list[int]) -> str:
        return bytes(id for id in ids if id < BOS).decode()

    def get_vocab_size(self) -> int:
        return 258


@dataclass(frozen=True)
class Documents:
    """Documents dealt out in an order that is easy to see through: rotated by seed and pass."""

    documents: tuple[Document, ...]

    def check(self) -> str:
        return ""

    def of(self, lane: int, lanes: int, seed: int, epoch: int) -> list[Document]:
        count = len(self.documents)
        turn = (seed + epoch) % count if count else 0
        order = self.documents[turn:] + self.documents[:turn]
        return list(order[lane::lanes])

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        return iter(self.of(lane, lanes, seed, epoch)[start:])


def documents(*lengths: int) -> Documents:
    """Documents of so many letters, each with its own beginning."""
    return Documents(
        tuple(
            Document(
                (f"{number}:" + "abcdefghijklmnopqrstuvwxyz" * (length // 26 + 1))[:length], ""
            )
            for number, length in enumerate(lengths)
        )
    )
