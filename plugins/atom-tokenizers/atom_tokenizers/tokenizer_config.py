"""The special tokens of a ``tokenizer_config.json``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from tokenizers import AddedToken


class Token(BaseModel):
    """A token and how it is found in text."""

    model_config = ConfigDict(frozen=True)

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = True

    def added(self) -> AddedToken:
        return AddedToken(**self.model_dump())


class TokenizerConfig(BaseModel):
    """What the file says of tokens, in the order in which torchtitan adds them."""

    model_config = ConfigDict(frozen=True)

    bos_token: str | Token | None = None
    eos_token: str | Token | None = None
    pad_token: str | Token | None = None
    unk_token: str | Token | None = None
    sep_token: str | Token | None = None
    cls_token: str | Token | None = None
    mask_token: str | Token | None = None
    added_tokens_decoder: dict[int, Token] = {}

    def special(self) -> list[AddedToken]:
        """Return the tokens with a role, and those marked special."""
        *roles, added = (getattr(self, name) for name in type(self).model_fields)
        tokens = [Token(content=role) if isinstance(role, str) else role for role in roles if role]
        return [token.added() for token in [*tokens, *added.values()] if token.special]

    def ordinary(self) -> list[AddedToken]:
        """Return the tokens that are found in text as any other."""
        return [t.added() for t in self.added_tokens_decoder.values() if not t.special]
