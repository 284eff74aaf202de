"""Prepare and build tokenizers as ATOM does: prepare, copy the files, build from the copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from atom.plugin import Document, PreparedTokenizer, TokenizerContext
from atom_tokenizers import bpe, byte_level, hf, ranks
from atom_tokenizers.config import Bpe, Bytes, HuggingFace

WORDS = [
    f"{start}{middle}{end}"
    for start in ("größ", "str", "日本", "c", "🙂", "pl")
    for middle in ("a", "ei", "语", "ou", "8")
    for end in ("r", "nd", "'s", "ck\n", "t, ")
]


Built = Callable[..., ranks.PlainTextTokenizer | ranks.ByteTokenizer]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(60)) for i in range(50)]


@pytest.fixture
def context(tmp_path: Path, texts: list[str]) -> TokenizerContext:
    def documents() -> Iterator[Document]:
        return (Document(text=text, id=str(i)) for i, text in enumerate(texts))

    return TokenizerContext(documents=documents, digest="d", cache=tmp_path / "cache")


def prepared(config: BaseModel, context: TokenizerContext) -> PreparedTokenizer:
    match config:
        case Bpe():
            return bpe.prepare(config, context)
        case HuggingFace():
            return hf.prepare(config, context)
        case Bytes():
            return byte_level.prepare(config, context)
    raise TypeError(config)


@pytest.fixture
def built(context: TokenizerContext, tmp_path: Path) -> Built:
    def build(config: BaseModel) -> ranks.PlainTextTokenizer | ranks.ByteTokenizer:
        preparation = prepared(config, context)
        folder = tmp_path / "run" / "tokenizer"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, path in preparation.files.items():
            shutil.copyfile(path, folder / name)
        if isinstance(config, HuggingFace):
            _check_settled(folder, preparation, context)
        described = (
            ranks.byte_level(config) if isinstance(config, Bytes) else ranks.from_files(config)
        )
        tokenizer = described.build(tokenizer_path=str(folder))
        assert tokenizer.get_vocab_size() == preparation.vocab_size
        return tokenizer

    return build


def _check_settled(folder: Path, copied: PreparedTokenizer, context: TokenizerContext) -> None:
    """Prepared files, prepared again, stay as they are: token shards know a tokenizer by them."""
    again = hf.prepare(HuggingFace(path=folder), context)
    assert again.vocab_size == copied.vocab_size
    assert set(again.files) == set(copied.files)
    for name, path in again.files.items():
        assert path.read_bytes() == (folder / name).read_bytes(), name
