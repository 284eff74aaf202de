"""Read the messages of a record.

Shapes: ``messages`` (OpenAI), ``conversations`` (ShareGPT), ``prompt`` and ``completion`` as
messages. Each message becomes a mapping with ``role`` and ``content``; other keys, such as
``tool_calls``, are kept for the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SENDERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function_call": "assistant",
    "observation": "tool",
}
"""ShareGPT's ``from`` -> role."""

_BEFORE = {
    "user": (None, "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
    "system": (None,),
}
"""Role -> the roles of the message before it; None: it is the first."""


class BadRecordError(ValueError):
    """A record holds no conversation that can be trained on. The message says why."""


@dataclass(frozen=True)
class Messages:
    """The messages of a conversation.

    Attributes:
        messages: in their order.
        first: number of the first message that may be trained on; those before it are a prompt.
        tools: descriptions of tools; None if there are none.
    """

    messages: list[dict[str, Any]]
    first: int = 0
    tools: list[Any] | None = None


def messages_of(record: Mapping[str, Any]) -> Messages:
    """Return the conversation of a record.

    Raises:
        BadRecordError: it holds none, or one with empty answers or roles out of order.
    """
    tools = record.get("tools") or None
    if tools is not None and not isinstance(tools, list):
        raise BadRecordError("its tools are no list")
    if record.get("messages") is not None:
        found = Messages(_listed(record["messages"], "messages"), tools=tools)
    elif record.get("conversations") is not None:
        found = Messages(_listed(record["conversations"], "conversations"), tools=tools)
    elif isinstance(record.get("prompt"), list):
        prompt = _listed(record["prompt"], "prompt")
        answer = _listed(record.get("completion"), "completion")
        found = Messages([*prompt, *answer], len(prompt), tools)
    else:
        fields = ", ".join(list(record)[:9]) or "none"
        raise BadRecordError(
            "it has no messages, conversations, or prompt and completion (its fields: "
            f"{fields[:200]})"
        )
    _check(found)
    return found


def _listed(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRecordError(f"its {name} are no list of messages")
    return [_message(item, f"{name}[{number}]") for number, item in enumerate(value)]


def _message(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRecordError(f"{place} is no message")
    message = {key: value for key, value in item.items() if value is not None}
    if "role" not in message and "from" in message:
        sender, content = message.pop("from"), message.pop("value", None)
        role = _SENDERS.get(str(sender).lower())
        if role is None:
            raise BadRecordError(f"{place} is from {sender!r}; known: {', '.join(_SENDERS)}")
        message = {"role": role, "content": content, **message}
    role = message.get("role")
    if not isinstance(role, str) or role not in _BEFORE:
        raise BadRecordError(f"{place} has the role {role!r}; known: {', '.join(_BEFORE)}")
    content = message.setdefault("content", "")
    if isinstance(content, list):
        message["content"] = content = _joined(content, place)
    if not isinstance(content, str):
        raise BadRecordError(f"{place} has a content that is no text")
    if role == "assistant" and not content.strip() and not message.get("tool_calls"):
        raise BadRecordError(f"{place} is an empty answer")
    return message


def _joined(parts: list[Any], place: str) -> str:
    """Return the text of a content in parts."""
    texts = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise BadRecordError(f"{place} has a part that is no text")
        texts.append(part["text"])
    return "".join(texts)


def _check(found: Messages) -> None:
    """Refuse roles out of order, and a conversation without an answer."""
    before: str | None = None
    for number, message in enumerate(found.messages):
        role = message["role"]
        if before not in _BEFORE[role]:
            after = f"after {before!r}" if before else "first"
            raise BadRecordError(f"message {number + 1} has the role {role!r} {after}")
        before = role
    if not any(message["role"] == "assistant" for message in found.messages[found.first :]):
        raise BadRecordError("it has no answer of the assistant")
