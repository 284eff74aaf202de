"""Keep the special tokens of a model out of what people type."""

from __future__ import annotations

from collections.abc import Iterable

_APART = "\N{ZERO WIDTH SPACE}"


def as_text(content: str, spellings: Iterable[str]) -> str:
    """Return ``content`` with a zero-width space in each special token that it spells.

    Args:
        content: a message of a conversation.
        spellings: the special tokens.
    """
    for spelling in spellings:
        if spelling:
            content = content.replace(spelling, spelling[0] + _APART + spelling[1:])
    return content
