"""On every rank: characters that occur often have an id, others are spelled in bytes."""

import json
from dataclasses import dataclass
from pathlib import Path

from torchtitan.components.tokenizer import BaseTokenizer


def build(config):
    return Characters.Config(vocab_size=258 + config.characters)


class Characters(BaseTokenizer):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        vocab_size: int

    def __init__(self, config, *, tokenizer_path):
        super().__init__()
        self.bos_id, self.eos_id = 256, 257
        self.size = config.vocab_size
        characters = json.loads(Path(tokenizer_path, "characters.json").read_text())
        self.ids = {c: 258 + n for n, c in enumerate(characters)}
        self.back = {n: c.encode() for c, n in self.ids.items()}

    def encode(self, text, *, add_bos=False, add_eos=False):
        ids = []
        for character in text:
            if character in self.ids:
                ids.append(self.ids[character])
            else:
                ids.extend(character.encode("utf-8", "surrogatepass"))
        return [256] * add_bos + ids + [257] * add_eos

    def encode_batch(self, texts, *, add_bos=False, add_eos=False):
        return [self.encode(t, add_bos=add_bos, add_eos=add_eos) for t in texts]

    def decode(self, ids):
        data = b"".join(self.back.get(i, bytes([i] if i < 256 else [])) for i in ids)
        return data.decode("utf-8", "replace")

    def byte_lengths(self):
        return [1] * 256 + [0, 0] + [len(self.back[n]) for n in sorted(self.back)]

    def get_vocab_size(self):
        return self.size
