"""Encode conversations with the chat template of a tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from atom.data.chat_template import ChatTemplate, TemplateError
from atom.errors import UserError
from atom.io.special_tokens import as_text

Message = Mapping[str, str]

_ANSWER = "an answer"


class TemplateTokenizer(Protocol):
    """A tokenizer of rendered conversations."""

    eos_id: int | None

    def encode_template(
        self, text: str, *, special: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]: ...

    def special_texts(self) -> list[str]: ...


class Chat:
    """The conversations of a tokenizer.

    Args:
        template: the template.
        tokens: the texts of special tokens by the names that templates use.
        tokenizer: the tokenizer.

    Raises:
        UserError: the template is not valid.
    """

    def __init__(
        self, template: str, tokens: Mapping[str, str], tokenizer: TemplateTokenizer
    ) -> None:
        self._tokenizer = tokenizer
        try:
            self._template = ChatTemplate(template, tokens)
        except TemplateError as error:
            raise UserError(f"the model's chat template {error}") from None

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Return the text of a conversation.

        A special token that a message spells gets a zero-width space after its first character.

        Args:
            messages: each has a ``role`` and a ``content``.
            add_generation_prompt: whether to end with the beginning of the next answer.

        Raises:
            UserError: the template refuses the messages.
        """
        spellings = self._tokenizer.special_texts()
        safe = [{**each, "content": as_text(each["content"], spellings)} for each in messages]
        try:
            return self._template.render(safe, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            reason = str(error).removeprefix("refuses the messages").strip(" :()")
            raise UserError(
                f"the model's chat template refuses this conversation: {reason}"
            ) from None

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, up to where the next answer begins."""
        return self._tokenizer.encode_template(self.text(messages, add_generation_prompt=True))[0]

    def ends(self) -> tuple[frozenset[int], str | None]:
        """Return what ends an answer: ids, and the text that the template writes after one.

        The ids are EOS, and the special token that begins that text; the text is then None.
        """
        eos = self._tokenizer.eos_id
        found: frozenset[int] = frozenset() if eos is None else frozenset({eos})
        messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": _ANSWER}]
        try:
            rendered = self.text(messages, add_generation_prompt=False)
        except UserError:
            return found, None
        after = rendered.rpartition(_ANSWER)[2].strip()
        first = [each for each in self._tokenizer.special_texts() if after.startswith(each)]
        if first:
            found |= frozenset(self._tokenizer.encode_template(max(first, key=len))[0])
            return found, None
        return found, after or None
