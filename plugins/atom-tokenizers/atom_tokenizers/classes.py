"""Reproduce classes of ``transformers`` that define how text is split into words.

Such a class takes only the vocabulary from a ``tokenizer.json``, and builds the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

END = "<|endoftext|>"

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letter}+|\p{{N}}| ?[^\s{marks}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = _WORDS.format(letter=r"\p{L}", marks=r"\p{L}\p{N}")
QWEN3_5 = _WORDS.format(letter=r"[\p{L}\p{M}]", marks=r"\p{L}\p{M}\p{N}")


@dataclass(frozen=True)
class Class(ABC):
    """A tokenizer class.

    Attributes:
        roles: its default special tokens.
    """

    roles: dict[str, str]

    @abstractmethod
    def prepare(self, tokenizer: Tokenizer, *, prefix_space: bool | None, legacy: bool) -> None:
        """Make ``tokenizer`` split text as this class does."""


@dataclass(frozen=True)
class ByteLevel(Class):
    """A tokenizer of bytes as letters.

    Attributes:
        pattern: regular expression of a word; None for GPT-2's.
        compose: whether text is normalized to NFC.
    """

    pattern: str | None = None
    compose: bool = False

    def prepare(self, tokenizer: Tokenizer, *, prefix_space: bool | None, legacy: bool) -> None:  # noqa: ARG002
        tokenizer.normalizer = normalizers.NFC() if self.compose else None
        plain, spaced = self.pattern is None, bool(prefix_space)
        cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=spaced, use_regex=plain)
        if self.pattern is not None:
            split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated", invert=False)
            cut = pre_tokenizers.Sequence([split, cut])
        tokenizer.pre_tokenizer = cut
        tokenizer.decoder = decoders.ByteLevel()


_LETTERS = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())


@dataclass(frozen=True)
class Llama(Class):
    """SentencePiece's BPE, with a space before the text, and bytes for unknown letters."""

    def prepare(self, tokenizer: Tokenizer, *, prefix_space: bool | None, legacy: bool) -> None:
        spaced = prefix_space is not False
        scheme = ("always" if legacy else "first") if spaced else "never"
        strip = [decoders.Strip(content=" ", left=1)] if spaced else []
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Sequence([*_LETTERS, *strip])
        model: Any = tokenizer.model
        model.fuse_unk, model.byte_fallback, model.unk_token = True, True, None


@dataclass(frozen=True)
class Gemma(Class):
    """SentencePiece's BPE without a space before the text."""

    def prepare(self, tokenizer: Tokenizer, *, prefix_space: bool | None, legacy: bool) -> None:  # noqa: ARG002
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous", invert=False)
        tokenizer.decoder = decoders.Sequence([*_LETTERS])
        model: Any = tokenizer.model
        model.fuse_unk, model.byte_fallback = True, True


_GPT2 = {"bos_token": END, "eos_token": END, "unk_token": END}
_QWEN = {"eos_token": END, "unk_token": END, "pad_token": END}

CLASSES: dict[str, Class] = {
    "GPT2Tokenizer": ByteLevel(_GPT2),
    "CodeGenTokenizer": ByteLevel(_GPT2),
    "GPTNeoXTokenizer": ByteLevel(_GPT2 | {"pad_token": "<|padding|>"}, compose=True),
    "Qwen2Tokenizer": ByteLevel(_QWEN, pattern=QWEN2, compose=True),
    "Qwen3_5Tokenizer": ByteLevel(_QWEN, pattern=QWEN3_5, compose=True),
    "LlamaTokenizer": Llama({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "GemmaTokenizer": Gemma(
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        }
    ),
}

PAIRS = ("GPT2Tokenizer", "Qwen2Tokenizer")
"""Classes that can be built from ``vocab.json`` and ``merges.txt``."""


def from_files(name: str, vocabulary: str, merges: str, *, prefix_space: bool | None) -> Tokenizer:
    """Return the tokenizer that a class builds from ``vocab.json`` and ``merges.txt``."""
    tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges))
    CLASSES[name].prepare(tokenizer, prefix_space=prefix_space, legacy=False)
    return tokenizer


_TEXT = "it's  1234 ÀÀ\r\n\n x<|a|>__y　中文!? e\u0301 ﬁ THE ☃\U0010fffd"


def as_class(
    name: str, tokenizer: Tokenizer, *, prefix_space: bool | None, legacy: bool
) -> Tokenizer | None:
    """Return the tokenizer that the class ``name`` builds from a ``tokenizer.json``, or None.

    None means that the class splits text differently. Text that begins with a space is not compared
    for SentencePiece's classes: files of Llama 2 differ there from their class by one id, and the
    class wins.
    """
    if not isinstance(tokenizer.model, models.BPE):
        return None
    own = Tokenizer.from_str(tokenizer.to_str())
    model: Any = own.model
    model.ignore_merges, model.dropout = False, None
    CLASSES[name].prepare(own, prefix_space=prefix_space, legacy=legacy)
    spaced = [f" {_TEXT}"] if isinstance(CLASSES[name], ByteLevel) else []
    for text in [_TEXT, *spaced]:
        if _words(own, text) != _words(tokenizer, text) or _ids(own, text) != _ids(tokenizer, text):
            return None
    return own


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids
