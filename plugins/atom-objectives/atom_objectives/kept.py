"""Check that a template writes all that is in a conversation.

A template that leaves something out would train on another conversation in silence. White space is
not compared, because templates trim contents; text may be written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from atom.data.chat_template import TemplateError
from atom_objectives import tool_calls
from atom_objectives.messages import Messages

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of what an answer says to itself."""

_THOUGHT_ENDS = "</think>"


def check(text: str, found: Messages) -> None:
    """Refuse a template that leaves out something of a conversation.

    Thoughts of answers that are not trained on may be left out, as most templates do.

    Args:
        text: the rendered conversation.
        found: the conversation.

    Raises:
        TemplateError: names the message.
    """
    written = _squeezed(text)
    for number, tool in enumerate(found.tools or ()):
        if not _has(written, 0, tool_calls.function(tool)["name"]):
            raise TemplateError(f"leaves out tools[{number}]")
    at = 0
    for number, message in enumerate(found.messages):
        begin, content = at, message["content"]
        if message["role"] == "assistant" and number not in found.trained:
            content = content.rpartition(_THOUGHT_ENDS)[2]
        elif message["role"] == "assistant":
            for key in _THOUGHTS:
                if isinstance(message.get(key), str) and not _has(written, begin, message[key]):
                    raise TemplateError(f"leaves out the {key} of message {number + 1}")
        at = _after(written, at, content)
        if at < 0:
            raise TemplateError(f"leaves out content of message {number + 1}")
        for call in message.get("tool_calls", ()):
            function = tool_calls.function(call)
            parts = [function["name"], *_leaves(function["arguments"])]
            if not all(_has(written, begin, part) for part in parts):
                raise TemplateError(f"leaves out the tool calls of message {number + 1}")


def _after(written: str, at: int, content: Any) -> int:
    """Return where a content ends in a text from ``at`` on, or -1."""
    ends = [
        (found, found + len(form))
        for form in _forms(content)
        if (found := written.find(form, at)) >= 0
    ]
    return min(ends)[1] if ends else -1


def _has(written: str, at: int, content: Any) -> bool:
    return _after(written, at, content) >= 0


def _forms(content: Any) -> Sequence[str]:
    """Return how a template may write a text or a number."""
    if not isinstance(content, str):
        return (json.dumps(content), str(content))
    forms = [content]
    for ascii in (False, True):
        # Jinja's own tojson writes these four as escapes.
        plain = json.dumps(content, ensure_ascii=ascii)[1:-1]
        safe = plain
        for letter in "<>&'":
            safe = safe.replace(letter, f"\\u{ord(letter):04x}")
        forms += [plain, safe]
    return [_squeezed(form) for form in dict.fromkeys(forms)]


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the texts and numbers in arguments, and the names of these."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _squeezed(text: str) -> str:
    return "".join(text.split())
