"""Make tokenizers of every shape that ``transformers`` saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from atom_tokenizers.classes import QWEN2

CORPUS = [
    "the cat sat on the mat, it's 1234 and don't 56,789 go; THE CAT SAT",
    "größer Straße naïve cafe\u0301 日本語 中文!? 🙂 \r\n\n  x  y\t_z <a> </a>",
]
END = "<|endoftext|>"


def byte_bpe(*special: str, vocab: int = 290, qwen: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if qwen:
        tokenizer.normalizer = normalizers.NFC()
        cut = pre_tokenizers.Split(Regex(QWEN2), behavior="isolated", invert=False)
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens(list(special))
    return tokenizer


NUMBERS = QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
"""Words with numbers of up to three digits: the pattern of Llama 3, OLMo 2 and others."""


def split_bpe(*special: str, pattern: str = NUMBERS, compose: bool = False) -> Tokenizer:
    """As the byte-level tokenizers of the last years: words by a pattern of their own."""
    tokenizer = byte_bpe(*special)
    tokenizer.normalizer = normalizers.NFC() if compose else None
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, bytes_])
    return tokenizer


def neox(*, compose: bool = True) -> Tokenizer:
    tokenizer = byte_bpe(END, "<|padding|>")
    tokenizer.normalizer = normalizers.NFC() if compose else None
    return tokenizer


def gemma() -> Tokenizer:
    tokenizer = metaspace()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def digits() -> Tokenizer:
    """As SmolLM's and StarCoder's: each digit is a word."""
    tokenizer = byte_bpe(END)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), letters]
    )
    return tokenizer


def metaspace(*, fallback: bool = True) -> Tokenizer:
    """As converted from SentencePiece's BPE: bytes for what is not in the vocabulary."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} - set("☃ɸ\r"))
    vocabulary = {piece: number for number, piece in enumerate([*pieces, *letters, "▁t", "he"])}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[("▁", "t"), ("h", "e")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=fallback,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


Make = Callable[[Path], None]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def files(tokenizer: Tokenizer, said: dict[str, Any] | None = None, /, **others: Any) -> Make:
    """Return what writes a ``tokenizer.json`` and other files, whose dots are underscores here."""

    def make(folder: Path) -> None:
        tokenizer.save(str(folder / "tokenizer.json"))
        _write(folder, said, others)

    return make


def pair(tokenizer: Tokenizer, said: dict[str, Any] | None = None, /, **others: Any) -> Make:
    """Return what writes ``vocab.json`` and ``merges.txt``."""

    def make(folder: Path) -> None:
        tokenizer.model.save(str(folder))
        _write(folder, said, others)

    return make


def _write(folder: Path, config: dict[str, Any] | None, others: dict[str, Any]) -> None:
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in others.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)


def listed(**tokens: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("id"): token for name, token in tokens.items()}
