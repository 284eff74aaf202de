"""Read the messages of a record.

Shapes: ``messages`` (OpenAI), ``conversations`` (ShareGPT), ``prompt`` and ``completion`` as
messages. Each message becomes a mapping with ``role`` and ``content``; other keys, such as
``tool_calls``, are kept for the template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atom_objectives import tool_calls
from atom_objectives.problems import BadRecordError

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
    "user": (None, "system", "developer", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
    "system": (None,),
    "developer": (None,),
}
"""Role -> the roles of the message before it; None: it is the first."""


@dataclass(frozen=True)
class Messages:
    """The messages of a conversation.

    Attributes:
        messages: in their order.
        trained: numbers of the answers that are trained on; not those of a prompt, or of weight 0.
        tools: descriptions of tools; None if there are none.
    """

    messages: list[dict[str, Any]]
    trained: frozenset[int]
    tools: list[Any] | None = None


def is_text(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a ``prompt`` and its ``completion`` as text."""
    shapes = ("messages", "conversations")
    return isinstance(record.get("prompt"), str) and not any(record.get(each) for each in shapes)


def messages_of(record: Mapping[str, Any]) -> Messages:
    """Return the conversation of a record.

    Raises:
        BadRecordError: it holds none, or one with empty answers or roles out of order.
    """
    first = 0
    if record.get("messages") is not None:
        messages = _listed(record["messages"], "messages")
    elif record.get("conversations") is not None:
        messages = _listed(record["conversations"], "conversations")
    elif isinstance(record.get("prompt"), list):
        prompt = _listed(record["prompt"], "prompt")
        first = len(prompt)
        messages = [*prompt, *_listed(record.get("completion"), "completion")]
    else:
        fields = ", ".join(list(record)[:9]) or "none"
        raise BadRecordError(
            "it has no messages, conversations, or prompt and completion (its fields: "
            f"{fields[:200]})"
        )
    if added := _system(record, messages):
        messages, first = [added, *messages], first + 1 if first else 0
    _check_order(messages)
    weights = [_weight(message, number) for number, message in enumerate(messages)]
    trained = [
        number
        for number, (message, weight) in enumerate(zip(messages, weights, strict=True))
        if number >= first and weight and message["role"] == "assistant"
    ]
    if not trained:
        raise BadRecordError("it has no answer of the assistant to train on")
    return Messages(messages, frozenset(trained), tool_calls.described(record.get("tools")))


def _listed(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise BadRecordError(f"its {name} are no list of messages")
    return [_message(item, f"{name}[{number}]") for number, item in enumerate(value)]


def _message(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadRecordError(f"{place} is no message")
    message = {key: value for key, value in item.items() if value is not None}
    if "role" not in message and "from" in message:
        sender, content = str(message.pop("from")).lower(), message.pop("value", None)
        role = _SENDERS.get(sender)
        if role is None:
            raise BadRecordError(f"{place} is from {sender!r}; known: {', '.join(_SENDERS)}")
        if sender == "function_call":
            message["tool_calls"], content = tool_calls.spelt(content, place), ""
        message = {"role": role, "content": content, **message}
    role = message.get("role")
    if not isinstance(role, str) or role not in _BEFORE:
        raise BadRecordError(f"{place} has the role {role!r}; known: {', '.join(_BEFORE)}")
    content = message.setdefault("content", "")
    if isinstance(content, list):
        message["content"] = content = _joined(content, place)
    if not isinstance(content, str):
        raise BadRecordError(f"{place} has a content that is no text")
    calls = tool_calls.of(message, place)
    if calls:
        message["tool_calls"] = calls
    else:
        message.pop("tool_calls", None)
    if role == "assistant" and not content.strip() and not calls:
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


def _system(record: Mapping[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the system turn that a record has beside its messages, if any."""
    content = record.get("system")
    if content is None or content == "":
        return None
    if not isinstance(content, str):
        raise BadRecordError("its system is no text")
    if messages[0]["role"] in ("system", "developer"):
        raise BadRecordError("it has a system turn twice: as a message, and as system")
    return {"role": "system", "content": content}


def _check_order(messages: list[dict[str, Any]]) -> None:
    before: str | None = None
    for number, message in enumerate(messages):
        role = message["role"]
        if before not in _BEFORE[role]:
            after = f"after {before!r}" if before else "first"
            raise BadRecordError(f"message {number + 1} has the role {role!r} {after}")
        before = role


def _weight(message: dict[str, Any], number: int) -> bool:
    """Take the weight out of a message, and return whether its answer is trained on."""
    weight = message.pop("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise BadRecordError(f"message {number + 1} has the weight {weight!r}; valid: 0 or 1")
    return bool(weight)
