"""Define the torchtitan tokenizers of the ranks.

Training encodes one text at a time, which starts no threads, so the process can still fork
afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tokenizers import Tokenizer
from torchtitan.components.tokenizer import BaseTokenizer, HuggingFaceTokenizer

from atom.errors import UserError
from atom.io import chat_files
from atom.io.files import read_text
from atom_tokenizers import chat
from atom_tokenizers.byte_lengths import byte_lengths
from atom_tokenizers.config import Bytes
from atom_tokenizers.text import well_formed
from atom_tokenizers.tokenizer_config import ROLES, TokenizerConfig


def from_files(_config: BaseModel) -> PlainTextTokenizer.Config:
    """Return the config of a tokenizer that is fully defined by its prepared files."""
    return PlainTextTokenizer.Config()


def byte_level(config: Bytes) -> ByteTokenizer.Config:
    """Return the config of the byte tokenizer."""
    return ByteTokenizer.Config(vocab_size=config.vocab_size)


class PlainTextTokenizer(HuggingFaceTokenizer):
    """torchtitan's tokenizer, for untrusted text.

    - Text never yields the id of a special token: its spelling is encoded letter by letter. Tokens
      that no file marks as special (``<tool_call>`` in some) are text.
    - BOS and EOS are added on request only, whatever the post-processor does.
    - Text is never truncated or padded, and a lone surrogate becomes U+FFFD.
    - The vocabulary size is the highest id plus one, gaps included.
    - A chat template is compiled when it is first applied, not when the tokenizer is loaded.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(HuggingFaceTokenizer.Config):
        pass

    def __init__(self, config: Config, *, tokenizer_path: str) -> None:
        self._template: str | None = None
        self._chat: chat.Chat | None = None
        super().__init__(config, tokenizer_path=tokenizer_path)
        added = self.tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._special -= {self._unknown_id()} - {self.bos_id, self.eos_id}

    def _load_tokenizer_from_path(self, tokenizer_path: str) -> Tokenizer:
        tokenizer = super()._load_tokenizer_from_path(tokenizer_path)
        tokenizer.encode_special_tokens = True  # that is, as ordinary text
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _infer_special_tokens(self) -> None:
        # All tokens are in the prepared tokenizer.json; torchtitan would add them in another order.
        roles = TokenizerConfig.model_validate(self._hf_config).roles()
        for role in ("bos", "eos"):
            if (token := roles.get(f"{role}_token")) is not None:
                setattr(self, f"{role}_token", token.content)
                setattr(self, f"{role}_id", self.tokenizer.token_to_id(token.content))

    def _unknown_id(self) -> int | None:
        model: dict[str, Any] = json.loads(self.tokenizer.to_str())["model"]
        unknown = model.get("unk_id")  # Unigram; the other models name a token
        if unknown is None and model.get("unk_token") is not None:
            unknown = self.tokenizer.token_to_id(model["unk_token"])
        return unknown

    def encode(
        self, text: str, *, add_bos: bool | None = None, add_eos: bool | None = None
    ) -> list[int]:
        """Return the ids of ``text``, between BOS and EOS if these are requested and exist.

        By default ``add_bos`` and ``add_eos`` follow the tokenizer's files.
        """
        add_bos = self.default_add_bos or self.hf_adds_bos if add_bos is None else add_bos
        add_eos = self.default_add_eos or self.hf_adds_eos if add_eos is None else add_eos
        ids: list[int] = self.tokenizer.encode(well_formed(text), add_special_tokens=False).ids
        return self._finished(ids, add_bos, add_eos)

    def encode_template(
        self, text: str, *, special: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a rendered conversation, and the characters of each: begin and end.

        With ``special``, the spelling of a special token is the token; nothing is added.
        """
        tokenizer = self.tokenizer
        tokenizer.encode_special_tokens = not special
        try:
            encoded = tokenizer.encode(well_formed(text), add_special_tokens=False)
        finally:
            tokenizer.encode_special_tokens = True
        return encoded.ids, encoded.offsets

    def special_texts(self) -> list[str]:
        """Return the spellings that :meth:`encode_template` takes for special tokens."""
        added = self.tokenizer.get_added_tokens_decoder()
        return [token.content for token in added.values() if token.special]

    def encode_batch(
        self, texts: Sequence[str], *, add_bos: bool, add_eos: bool
    ) -> list[list[int]]:
        """Return the ids of several texts, faster than one by one.

        It starts threads, unless ``TOKENIZERS_PARALLELISM`` is ``false``.
        """
        encoded = self.tokenizer.encode_batch_fast(
            [well_formed(text) for text in texts], add_special_tokens=False
        )
        return [self._finished(one.ids, add_bos, add_eos) for one in encoded]

    def _finished(self, ids: list[int], add_bos: bool, add_eos: bool) -> list[int]:
        """Return the ids without special tokens that were found in text, and with BOS and EOS."""
        if not self._special.isdisjoint(ids):
            ids = [letter for token_id in ids for letter in self._letters(token_id)]
        if add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _letters(self, token_id: int) -> list[int]:
        """Encode the letters of a special token that the model (Unigram, words) found in text."""
        if token_id not in self._special:
            return [token_id]
        model = self.tokenizer.model
        tokens = (
            t for letter in self.tokenizer.id_to_token(token_id) for t in model.tokenize(letter)
        )
        return [token.id for token in tokens if token.id not in self._special]

    def get_vocab_size(self) -> int:
        """Return the number of embedding rows that all ids need."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def vocab_size(self) -> int:
        return self.get_vocab_size()

    def byte_lengths(self) -> list[int | None] | None:
        """Return the bytes of text of each id, or None if its tokens do not tell."""
        return byte_lengths(self.tokenizer, self._special, self._unknown_id())

    def set_chat_template(self, template: Any) -> None:
        self._template = chat_files.default_of(template)
        self._chat = None

    def chat(self) -> chat.Chat | None:
        """Return the conversations of the chat template; None without one.

        Raises:
            UserError: the template is not valid.
        """
        if self._chat is None and self._template is not None:
            roles = TokenizerConfig.model_validate(self._hf_config or {}).roles()
            tokens = {role: token.content for role, token in roles.items() if role in ROLES}
            self._chat = chat.Chat(self._template, tokens, self)
        return self._chat

    def apply_chat_template(self, messages: list[dict[str, str]], **kwargs: Any) -> str:
        if (found := self.chat()) is None:
            raise UserError("the tokenizer has no chat template")
        return found.text(messages, add_generation_prompt=bool(kwargs.get("add_generation_prompt")))


class ByteTokenizer(BaseTokenizer):
    """A tokenizer of UTF-8 bytes.

    Ids 256 and 257 are BOS and EOS; higher ones are padding and never used. Decoding restores every
    Python string, with lone surrogates.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        vocab_size: int
        """Rows of the embedding, at least 258."""

    def __init__(self, config: Config, *, tokenizer_path: str) -> None:
        super().__init__()
        self.bos_id, self.eos_id = 256, 257
        self._files = Path(tokenizer_path)
        self._vocab_size = config.vocab_size

    def encode(self, text: str, *, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Return the bytes of ``text``, between BOS and EOS if these are requested."""
        ids = list(text.encode("utf-8", "surrogatepass"))
        if add_bos:
            ids.insert(0, self.bos_id)
        if add_eos:
            ids.append(self.eos_id)
        return ids

    def encode_template(
        self,
        text: str,
        *,
        special: bool = True,  # noqa: ARG002
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the bytes of a rendered conversation, and the characters of each: begin and end.

        No text is a special token.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for at, character in enumerate(text):
            encoded = character.encode("utf-8", "surrogatepass")
            ids += encoded
            offsets += [(at, at + 1)] * len(encoded)
        return ids, offsets

    def special_texts(self) -> list[str]:
        """Return no spelling: no text is a special token."""
        return []

    def chat(self) -> chat.Chat | None:
        """Return the conversations of the chat template in the tokenizer's folder; None without
        one.

        Raises:
            UserError: the template is not valid.
        """
        path = self._files / chat_files.TEMPLATE
        return chat.Chat(read_text(path), {}, self) if path.is_file() else None

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD, special ids are dropped."""
        data = bytes(token_id for token_id in token_ids if token_id < 256)
        try:
            return data.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")

    def byte_lengths(self) -> list[int]:
        """Return the bytes of text of each id: 1 for a byte, 0 for BOS, EOS and padding."""
        return [1] * 256 + [0] * (self._vocab_size - 256)

    def get_vocab_size(self) -> int:
        """Return the number of embedding rows, padding included."""
        return self._vocab_size
