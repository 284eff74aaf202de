"""Read the tokens defined by the files beside a ``tokenizer.json``, in ``transformers``' order.

``tokenizer_config.json`` lists added tokens with their ids (``added_tokens_decoder``). Without that
list, ``special_tokens_map.json`` and ``added_tokens.json`` are read, and their tokens come first.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from tokenizers import AddedToken

ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Token(BaseModel):
    """A token and how it is found in text."""

    model_config = ConfigDict(frozen=True)

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None
    special: bool = True

    def added(self) -> AddedToken:
        plain = not self.special if self.normalized is None else self.normalized
        return AddedToken(**(self.model_dump() | {"normalized": plain}))


class TokenizerConfig(BaseModel):
    """The token definitions of the files."""

    model_config = ConfigDict(frozen=True)

    tokenizer_class: str | None = None
    add_prefix_space: bool | None = None
    legacy: bool | None = None
    bos_token: str | Token | None = None
    eos_token: str | Token | None = None
    unk_token: str | Token | None = None
    sep_token: str | Token | None = None
    pad_token: str | Token | None = None
    cls_token: str | Token | None = None
    mask_token: str | Token | None = None
    additional_special_tokens: list[str | Token] | None = None
    extra_special_tokens: list[str | Token] | dict[str, str | Token] | None = None
    added_tokens_decoder: dict[int, Token] | None = None
    added_tokens: dict[str, int] = Field(
        default={}, description="of added_tokens.json: the token and its id"
    )

    @property
    def kind(self) -> str | None:
        """The class of ``transformers``, without the suffix of its fast implementation."""
        return self.tokenizer_class.removesuffix("Fast") if self.tokenizer_class else None

    def roles(self) -> dict[str, Token]:
        """Return the special tokens by role, and additional ones by their text."""
        found: dict[str, str | Token] = {
            role: token for role in ROLES if (token := getattr(self, role)) is not None
        }
        extra = self.extra_special_tokens or self.additional_special_tokens or []
        if isinstance(extra, dict):
            found |= extra
        else:
            found |= {_spelling(token): token for token in extra}
        listed = {token.content: token for token in (self.added_tokens_decoder or {}).values()}
        return {
            name: listed.get(_spelling(token))
            or (token if isinstance(token, Token) else Token(content=token))
            for name, token in found.items()
        }

    def declared(self) -> dict[int, Token]:
        """Return the tokens with given ids, by rising id."""
        special = {token.content for token in self.roles().values()}
        found = dict(self.added_tokens_decoder or {})
        for content, token_id in self.added_tokens.items():
            role = content in special
            found[token_id] = Token(content=content, normalized=not role, special=role)
        return dict(sorted(found.items()))


def merged(
    config: dict[str, Any], special: dict[str, Any], added: dict[str, Any]
) -> dict[str, Any]:
    """Return ``tokenizer_config.json`` merged with the two older files.

    Args:
        config: content of ``tokenizer_config.json``.
        special: content of ``special_tokens_map.json``.
        added: content of ``added_tokens.json``.
    """
    if "added_tokens_decoder" in config:
        return config
    found = config | special
    return found | {"added_tokens": added} if added else found


def _spelling(token: str | Token) -> str:
    return token if isinstance(token, str) else token.content
