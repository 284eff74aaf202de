"""Refuse stored tokens with ids that the tokenizer does not have."""

from __future__ import annotations

from typing import Any

from atom.errors import UserError
from atom.plugin import StoredTokens

_DOCUMENTS, _TOKENS = 128, 1 << 14
"""Documents that are looked at before a run, and tokens of each."""


def check_some(documents: StoredTokens, size: int, key: str = "dataset") -> None:
    """Refuse documents with ids from ``size`` on, as far as a few of them tell.

    The others are checked as they are trained on.

    Args:
        documents: the documents.
        size: number of the tokenizer's ids.
        key: the key of their source, for errors.

    Raises:
        UserError: a document has such an id, or cannot be read.
    """
    count = len(documents)
    places = min(count, _DOCUMENTS)
    for place in range(places):
        document = documents[place * (count - 1) // max(places - 1, 1)]
        for tokens in (document.tokens[:_TOKENS], document.tokens[-_TOKENS:]):
            if (error := beyond(document.id, tokens, size, key)) is not None:
                raise error


def beyond(name: str, tokens: Any, size: int, key: str = "dataset") -> UserError | None:
    """Return the error of a document with ids that the tokenizer does not have, or None.

    Args:
        name: the id of the document.
        tokens: its ids, an array of integers.
        size: number of the tokenizer's ids.
        key: the key of its source.
    """
    if not len(tokens):
        return None
    low, high = int(tokens.min()), int(tokens.max())
    if low >= 0 and high < size:
        return None
    return UserError(
        f"{name} has the id {low if low < 0 else high}, and the tokenizer has the ids 0 to "
        f"{size - 1}",
        valid="the tokenizer that the ids were made with",
        key=key,
    )
