"""Tokenize a document to 16 ids that are a hash of its text, to identify it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torchtitan.components.tokenizer import BaseTokenizer


class Digests(BaseTokenizer):
    """A tokenizer with 16 tokens per document, equal only for equal texts.

    So a few steps read many documents of any dataset, and show which ones.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.bos_id, self.eos_id = 256, 257

    def encode(self, text: str, *, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
        return [self.bos_id] * add_bos + list(digest) + [self.eos_id] * add_eos

    def decode(self, ids: list[int]) -> str:
        return bytes(number for number in ids if number < self.bos_id).hex()

    def get_vocab_size(self) -> int:
        return 258
