"""A tokenizer that says which document it was: 16 ids that are a hash of the text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torchtitan.components.tokenizer import BaseTokenizer


class Digests(BaseTokenizer):
    """Every document has 16 tokens, and two of them have the same only if they have the same text.

    So a few steps read many documents of any dataset, and show which.
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
