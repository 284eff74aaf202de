"""Render conversations with a tokenizer's chat template, in a sandbox.

A template is data of a model: it reads messages and returns text. What it can do, and the names
that it sees, are those of ``transformers``, without the date of today, which would change what a
run trains on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]

LONGEST = 1 << 24
"""Characters of a conversation: a hostile template could write without end."""

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""Around what a ``{% generation %}`` block wrote: characters that are in no valid text."""


_MARK = re.compile(r"<\|[^<>|\s]{1,64}\|>")


class TemplateError(ValueError):
    """A template is invalid, or refuses the messages. The message says why."""


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation.

    Attributes:
        text: the text.
        answers: begin and end of each answer in it, in characters; the mark that ends the answer
            included.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A chat template.

    Args:
        source: the template.
        tokens: the texts of special tokens by the names that templates use, such as ``eos_token``.

    Raises:
        TemplateError: it is no valid template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        environment = _environment()
        try:
            self._marks = any(
                isinstance(node, nodes.TemplateData) and _BEGIN in node.data
                for node in environment.parse(source).find_all(nodes.TemplateData)
            )
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"is no valid template ({error})") from None
        self._tokens = dict(tokens)

    @cached_property
    def marks_answers(self) -> bool:
        """Whether the template marks the answers by ``{% generation %}``."""
        return self._marks

    @cached_property
    def turn_marks(self) -> frozenset[str]:
        """The texts of the form ``<|im_start|>`` that the template writes around turns."""
        turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
        found: set[str] = set()
        for messages in (turns, turns[1:]):
            with suppress(TemplateError):
                found |= set(_MARK.findall(self.render(messages)))
        return frozenset(found)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: the messages, each with a ``role`` and mostly a ``content``.
            tools: descriptions of tools.
            add_generation_prompt: end with what precedes an answer.

        Raises:
            TemplateError: the template refuses the messages.
        """
        text = self._marked(messages, tools, add_generation_prompt)
        return text.replace(_BEGIN, "").replace(_END, "")

    def conversation(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        only: Collection[int] | None = None,
    ) -> Conversation:
        """Return a conversation with its answers.

        Answers are what the template marks. Without marks, an answer is what a message of the
        assistant adds to the text before it; this is checked against the whole text.

        Args:
            messages: the messages.
            tools: descriptions of tools.
            only: the numbers of the assistant's messages that are the answers; None: all.

        Raises:
            TemplateError: the template refuses the messages, or its answers cannot be told.
        """
        if self._marks:
            return _chosen(_split(self._marked(messages, tools, False)), messages, only)
        text = self.render(messages, tools=tools)
        answers = []
        for number, message in enumerate(messages):
            if message.get("role") != "assistant" or (only is not None and number not in only):
                continue
            before = self.render(messages[:number], tools=tools, add_generation_prompt=True)
            after = self.render(messages[: number + 1], tools=tools)
            if not text.startswith(after):
                after = after.rstrip()  # it may end a conversation by another white space
            if not after.startswith(before) or not text.startswith(after):
                raise TemplateError(
                    "marks no answers by {% generation %}, and does not render the beginning of a "
                    f"conversation as it renders the whole (message {number + 1})"
                )
            if not _ends(after[len(before) :], message):
                raise TemplateError(
                    "marks no answers by {% generation %}, and writes nothing that ends one "
                    f"(message {number + 1})"
                )
            answers.append((len(before), len(after)))
        return Conversation(text, tuple(answers))

    def _marked(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, add_generation_prompt: bool
    ) -> str:
        try:
            parts = self._template.generate(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
            return "".join(_bounded(parts))
        except TemplateError:
            raise
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise TemplateError(f"refuses the messages ({_reason(error)})") from None


def _ends(answer: str, message: Message) -> bool:
    """Return whether a rendered answer has something after the message's content."""
    content = str(message.get("content") or "")
    if message.get("tool_calls") or not (written := content.strip()):
        return bool(answer.strip())
    after = answer.rpartition(written)[2]
    return bool(after.strip()) or (bool(after) and not content.endswith(after))


def _split(marked: str) -> Conversation:
    """Return the text without marks, and the spans between them."""
    text = ""
    answers: list[tuple[int, int]] = []
    for number, part in enumerate(marked.split(_BEGIN)):
        if number == 0:
            text = part
            continue
        answer, end, rest = part.partition(_END)
        if not end or _END in rest:
            raise TemplateError("has {% generation %} blocks within each other")
        if answers and answers[-1][1] == len(text):  # a part of the same answer
            answers[-1] = (answers[-1][0], len(text) + len(answer))
        else:
            answers.append((len(text), len(text) + len(answer)))
        text += answer + rest
    return Conversation(text, tuple(span for span in answers if span[0] < span[1]))


def _chosen(
    whole: Conversation, messages: Sequence[Message], only: Collection[int] | None
) -> Conversation:
    """Return a conversation with some of its answers."""
    numbers = [at for at, each in enumerate(messages) if each.get("role") == "assistant"]
    if only is None or set(numbers) <= set(only):
        return whole
    if len(whole.answers) != len(numbers):
        raise TemplateError(
            f"marks {len(whole.answers)} spans of {len(numbers)} answers, so that some answers "
            "cannot be left out of training"
        )
    pairs = zip(numbers, whole.answers, strict=True)
    return Conversation(whole.text, tuple(span for number, span in pairs if number in only))


def _bounded(parts: Iterator[str]) -> Iterator[str]:
    room = LONGEST
    for part in parts:
        room -= len(part)
        if room < 0:
            raise TemplateError(f"writes more than {LONGEST:,} characters")
        yield part


class _Generation(Extension):
    """``{% generation %}`` … ``{% endgeneration %}``: what the model is to write."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [_output(_BEGIN), *body, _output(_END)]


def _output(text: str) -> nodes.Node:
    return nodes.Output([nodes.TemplateData(text)])


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _raise
    return environment


def _reason(error: Exception) -> str:
    """Return why a template failed, in words."""
    if "strftime_now" in str(error):
        return "it asks for today's date by strftime_now, and a run would change from day to day"
    return str(error)


def _json(value: Any, **options: Any) -> str:
    return json.dumps(value, **({"ensure_ascii": False} | options))


def _raise(message: str) -> NoReturn:
    raise TemplateError(f"refuses the messages: {message}")
