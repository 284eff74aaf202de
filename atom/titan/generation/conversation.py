"""Converse with a model that has a chat template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from atom.errors import UserError
from atom.titan.generation.generate import follow
from atom.titan.generation.generator import pieces
from atom.titan.generation.sampling import Sampling

Begin = Callable[[Sequence[Sequence[int]]], tuple[Any, torch.Tensor]]

UNLIMITED = 4096
"""Tokens of an answer of a model that has no maximum."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """A model and its tokenizer, as a conversation uses them.

    Attributes:
        begin: returns the state after prompts, and the logits of the next tokens, as
            :func:`atom.titan.generation.decoding.begin` does.
        tokenizer: with ``decode(ids) -> text``.
        encode: (messages) -> ids, up to where the next answer begins.
        ends: ids that end an answer.
        end: a text that ends an answer; None if ids do.
        size: the number of ids.
        reach: the maximum number of tokens of a text; None if the model has none.
    """

    begin: Begin
    tokenizer: Any
    encode: Callable[[Sequence[Mapping[str, str]]], list[int]]
    ends: Collection[int]
    end: str | None = None
    size: int
    reach: int | None


class Conversation:
    """A conversation with a model.

    Attributes:
        messages: what has been said, each with a ``role`` and a ``content``.
        cut_off: whether the last answer reached the maximum number of tokens.

    Args:
        speaker: the model.
        system: the system's message; None for none.
        tokens: the maximum number of tokens of an answer; None for as many as the model supports.
        sampling: how they are drawn.
    """

    def __init__(
        self, speaker: Speaker, *, system: str | None, tokens: int | None, sampling: Sampling
    ) -> None:
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.cut_off = False
        self._speaker = speaker
        self._tokens = tokens
        self._sampling = sampling
        self._state: Any = None
        self._known: list[int] = []

    def answer(self, message: str) -> Iterator[str]:
        """Yield the answer to a message, in pieces.

        What has been said until an exception, such as Ctrl-C, stays in the conversation.

        Raises:
            UserError: the template refuses the message, or the conversation is longer than the
                model supports; it stays as it was before the message.
        """
        asked = [*self.messages, {"role": "user", "content": message}]
        ids = self._speaker.encode(asked)
        room = UNLIMITED if self._speaker.reach is None else self._speaker.reach - len(ids)
        if room < 1:
            raise UserError(
                f"the conversation has {len(ids)} tokens, and this model reaches "
                f"{self._speaker.reach}"
            )
        tokens = room if self._tokens is None else min(room, self._tokens)
        said: list[str] = []
        self.messages = asked
        try:
            read = pieces(self._speaker.tokenizer, ids, self._ids(ids, tokens))
            for piece in read if self._speaker.end is None else until(read, self._speaker.end):
                said.append(piece)
                yield piece
        finally:
            self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]

    def _ids(self, ids: list[int], tokens: int) -> Iterator[int]:
        state, logits_BV = self._read(ids)
        made: list[int] = []
        following = follow(
            state,
            logits_BV,
            tokens=tokens,
            sampling=self._sampling,
            ends=self._speaker.ends,
            size=self._speaker.size,
        )
        self.cut_off = False
        try:
            for _, token in following:
                made.append(token)
                yield token
            self.cut_off = len(made) == tokens
        except GeneratorExit:  # the answer has ended by a text; nothing was being computed
            self._keep(state, [*ids, *made])
            raise
        self._keep(state, [*ids, *made])

    def _keep(self, state: Any, ids: list[int]) -> None:
        self._state, self._known = state, ids[: state.lengths[0]]

    def _read(self, ids: list[int]) -> tuple[Any, torch.Tensor]:
        """Return the state after ``ids``, and the logits of the next token."""
        # An exception while it computes would leave the state useless.
        state, self._state = self._state, None
        known = len(self._known)
        if state is not None and len(ids) > known and ids[:known] == self._known:
            return state, state.extend([ids[known:]])
        return self._speaker.begin([ids])


def until(pieces: Iterator[str], end: str) -> Iterator[str]:
    """Yield the text of ``pieces`` before the first ``end``.

    What may be the beginning of ``end`` is held back until it is known.
    """
    held = ""
    for piece in pieces:
        held += piece
        text, found, _ = held.partition(end)
        if found:
            yield text
            return
        sizes = range(min(len(held), len(end) - 1), 0, -1)
        kept = next((size for size in sizes if end.startswith(held[-size:])), 0)
        text, held = held[: len(held) - kept], held[len(held) - kept :]
        if text:
            yield text
    if held:
        yield held
