"""Tokenize to one id per ASCII character; the two highest ids are BOS and EOS."""

from __future__ import annotations

from dataclasses import dataclass

from torchtitan.components.tokenizer import BaseTokenizer

from atom.testing.partners import VOCAB_SIZE


class Ascii(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, *, tokenizer_path: str | None = None) -> None:  # noqa: ARG002
        super().__init__()
        self.bos_id, self.eos_id = VOCAB_SIZE - 2, VOCAB_SIZE - 1

    def encode(self, text: str, *, add_bos: bool = True, add_eos: bool = True) -> list[int]:
        return [self.bos_id] * add_bos + list(text.encode("ascii")) + [self.eos_id] * add_eos

    def encode_template(
        self,
        text: str,
        *,
        special: bool = True,  # noqa: ARG002
    ) -> tuple[list[int], list[tuple[int, int]]]:
        return list(text.encode("ascii")), [(at, at + 1) for at in range(len(text))]

    def special_texts(self) -> list[str]:
        return []

    def decode(self, ids: list[int]) -> str:
        return bytes(index for index in ids if index < self.bos_id).decode("ascii")

    def get_vocab_size(self) -> int:
        return VOCAB_SIZE


def build(_config: None) -> Ascii.Config:
    return Ascii.Config()
