"""Write folders of token shards without a tokenizer of a plugin, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atom.data.manifest import (
    LeftOut,
    MadeBy,
    Manifest,
    Shard,
    TokenizerOf,
    content_digest,
    dtype_of,
    tokenizer_digest,
)
from atom.data.writing import Encoder, write_shard
from atom.plugin import Document


class Letters:
    """A tokenizer: the numbers of characters modulo a vocabulary. Its last id is BOS and EOS."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str, *, add_bos: bool, add_eos: bool) -> list[int]:
        last = self.vocab_size - 1
        letters = [ord(letter) % last for letter in text]
        return [*([last] * add_bos), *letters, *([last] * add_eos)]


def write(folder: Path, shards: Sequence[Sequence[Document]], vocab_size: int = 300) -> Manifest:
    """Write documents as a folder of token shards."""
    state = folder / "unfinished"
    state.mkdir(parents=True)
    encoder = Encoder(Letters(vocab_size), vocab_size)
    found = [
        write_shard(folder, state, number, documents, encoder, lambda _: None)
        for number, documents in enumerate(shards)
    ]
    state.rmdir()
    return describe(folder, [shard for shard, _ in found], vocab_size)


def describe(folder: Path, shards: list[Shard], vocab_size: int) -> Manifest:
    """Write the manifest of shards that are written."""
    tokenizer = tokenizer_digest(vocab_size, {})
    manifest = Manifest(
        digest=content_digest(dtype_of(vocab_size), tokenizer, shards),
        dtype=dtype_of(vocab_size),
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        left_out=LeftOut(),
        tokenizer=TokenizerOf(name="x", digest=tokenizer, vocab_size=vocab_size, files={}),
        source=MadeBy(name="x", digest="x"),
        shards=shards,
    )
    manifest.write(folder)
    return manifest
