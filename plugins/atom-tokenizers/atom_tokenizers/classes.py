"""Classes of ``transformers`` that know by themselves how text is cut into words.

A folder with ``vocab.json`` and ``merges.txt`` does not say; its class does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

END = "<|endoftext|>"

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Class:
    """One class.

    Attributes:
        roles: the special tokens that it has where no file names others.
        pattern: of a word; None for GPT-2's.
        compose: whether text is normalised to NFC.
    """

    roles: dict[str, str]
    pattern: str | None = None
    compose: bool = False

    def prepare(self, tokenizer: Tokenizer, *, prefix_space: bool) -> None:
        """Have ``tokenizer`` cut text as this class does."""
        if self.compose:
            tokenizer.normalizer = normalizers.NFC()
        plain = self.pattern is None
        cut: Any = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=plain)
        if self.pattern is not None:
            split = pre_tokenizers.Split(Regex(self.pattern), behavior="isolated", invert=False)
            cut = pre_tokenizers.Sequence([split, cut])
        tokenizer.pre_tokenizer = cut
        tokenizer.decoder = decoders.ByteLevel()


CLASSES = {
    "GPT2Tokenizer": Class({"bos_token": END, "eos_token": END, "unk_token": END}),
    "Qwen2Tokenizer": Class(
        {"eos_token": END, "unk_token": END, "pad_token": END}, pattern=QWEN2, compose=True
    ),
}

OF_MODELS = {
    "gpt2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
}
"""The class of a folder whose files name none, by the ``model_type`` of its ``config.json``."""


def from_files(name: str, vocabulary: str, merges: str, *, prefix_space: bool) -> Tokenizer:
    """Return the tokenizer that the class ``name`` makes of ``vocab.json`` and ``merges.txt``."""
    tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges))
    CLASSES[name].prepare(tokenizer, prefix_space=prefix_space)
    return tokenizer


def cuts_otherwise(name: str, tokenizer: Tokenizer, *, prefix_space: bool) -> bool:
    """Return whether a ``tokenizer.json`` cuts text otherwise than its class, which is obeyed."""
    own = Tokenizer(models.BPE())
    CLASSES[name].prepare(own, prefix_space=prefix_space)
    ours, theirs = own.pre_tokenizer, tokenizer.pre_tokenizer
    text = " it's  1234 ÀÀ\r\n\n x<|a|>__y　中文!?"
    if theirs is None or ours.pre_tokenize_str(text) != theirs.pre_tokenize_str(text):
        return True
    composed = "e\u0301 ﬁ"
    before = tokenizer.normalizer
    normal = before.normalize_str(composed) if before is not None else composed
    own_normal = own.normalizer
    return bool(normal != (own_normal.normalize_str(composed) if own_normal else composed))
