"""Read the tools of a record, and the calls of its messages.

Templates get them as ``transformers`` defines: arguments as an object. OpenAI's files, and tables,
have text with JSON instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from atom_objectives.problems import BadRecordError


def described(value: Any) -> list[Any] | None:
    """Return the descriptions of a record's tools; None if it has none.

    Raises:
        BadRecordError: they are no list of objects.
    """
    if isinstance(value, str):
        value = _parsed(value, "its tools are") if value.strip() else None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadRecordError("its tools are no list of objects")
    for number, tool in enumerate(value):
        if not isinstance(function(tool).get("name"), str):
            raise BadRecordError(f"tools[{number}] has no name")
    return value


def of(message: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """Return the calls of a message, with arguments as objects.

    Raises:
        BadRecordError: a call has no name, or arguments that are no object.
    """
    if message.get("function_call"):
        raise BadRecordError(f"{place} has a function_call, which is an older form of tool_calls")
    calls = message.get("tool_calls")
    if isinstance(calls, str):
        calls = _parsed(calls, f"{place} has tool_calls that are") if calls.strip() else None
    if not calls:
        return []
    if message.get("role") != "assistant":
        raise BadRecordError(f"{place} calls tools, and is no answer of the assistant")
    if not isinstance(calls, list):
        raise BadRecordError(f"{place} has tool_calls that are no list")
    return [_call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(calls)]


def spelt(content: Any, place: str) -> list[dict[str, Any]]:
    """Return the calls of a ShareGPT message from ``function_call``: JSON of one call or several.

    Raises:
        BadRecordError: it is no such JSON.
    """
    if not isinstance(content, str):
        raise BadRecordError(f"{place} is from 'function_call', and is no text")
    calls = _parsed(content, f"{place} is from 'function_call', and is")
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


def function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the function of a call or of a tool, which may be all of it."""
    inner = call.get("function", call)
    return inner if isinstance(inner, dict) else {}


def as_text(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with the arguments of calls as JSON, which some templates expect."""
    return [
        {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _call(call: Any, place: str) -> dict[str, Any]:
    if not isinstance(call, dict) or not isinstance(function(call).get("name"), str):
        raise BadRecordError(f"{place} has no name of a function")
    inner = dict(function(call))
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"{place} has arguments that are") if arguments else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadRecordError(f"{place} has arguments that are no object")
    inner["arguments"] = arguments
    kept = {key: value for key, value in call.items() if value is not None}
    return {"type": "function", **kept, "function": inner} if "function" in call else inner


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    inner = dict(function(call))
    inner["arguments"] = json.dumps(inner["arguments"], ensure_ascii=False)
    return {**call, "function": inner} if "function" in call else inner


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecordError(f"{what} no JSON ({error})") from None
