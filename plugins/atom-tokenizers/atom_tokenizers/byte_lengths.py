"""Compute how many bytes of text each id of a Hugging Face tokenizer stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_LETTERS = frozenset(pre_tokenizers.ByteLevel.alphabet())


def byte_lengths(
    tokenizer: Tokenizer, special: set[int], unknown: int | None
) -> list[int | None] | None:
    """Return the bytes of each id: 0 for special tokens and gaps, None for the unknown token.

    A space that SentencePiece puts before a text counts as one byte, as it is part of a token.

    Args:
        tokenizer: the tokenizer.
        special: the ids of its special tokens.
        unknown: the id of text that it does not know, if it has one.

    Returns:
        One number for each id; None if tokens are neither byte-level nor SentencePiece's.
    """
    described: dict[str, Any] = json.loads(tokenizer.to_str())
    length = _of_a_token(described["decoder"], described["model"])
    if length is None:
        return None
    vocabulary = tokenizer.get_vocab()
    lengths: list[int | None] = [0] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        lengths[number] = length(token)
    for number, added in tokenizer.get_added_tokens_decoder().items():
        lengths[number] = len(added.content.encode())  # found in text as it is spelled
    for number in special:
        lengths[number] = 0
    if unknown is not None and unknown not in special:
        lengths[unknown] = None
    return lengths


def _of_a_token(decoder: Any, model: dict[str, Any]) -> Callable[[str], int | None] | None:
    """Return the function of a token's spelling that returns its bytes, by the decoder."""
    kinds = {each["type"] for each in _steps(decoder)}
    if kinds == {"ByteLevel"}:
        return lambda token: len(token) if _LETTERS.issuperset(token) else None
    spaces = any(
        each["type"] == "Metaspace" or each.get("pattern") == {"String": _SPACE}
        for each in _steps(decoder)
    )
    if not spaces or not kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        return None
    fallback = bool(model.get("byte_fallback")) or "ByteFallback" in kinds

    def pieces(token: str) -> int:
        if fallback and _BYTE.fullmatch(token):
            return 1
        return len(token.replace(_SPACE, " ").encode())

    return pieces


def _steps(decoder: Any) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]
