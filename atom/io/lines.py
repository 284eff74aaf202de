"""Define text types for launcher parameters that go into scripts and manifests, and mark the fields
that a file may set.

``Field(json_schema_extra=FROM_FILES)`` marks a text field that files from anyone may set. Numbers,
booleans and choices need no mark. All other text must come from the command line or the user's own
file, because it can be a command, an option, or a destination for data.
"""

from __future__ import annotations

import re
import types
import typing
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

# Control characters, line breaks of any kind, and characters that change the text direction.
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def is_line(text: str) -> bool:
    """Return whether ``text`` is safe in a script: one line, without control characters."""
    return _UNSEEN.search(text) is None


def _value(text: str) -> str:
    if not is_line(text):
        raise ValueError("must be one line, without control characters")
    return text


def _line(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return _value(text)


def _word(text: str) -> str:
    if any(map(str.isspace, text)):
        raise ValueError("must be one word, without spaces and control characters")
    return _line(text)


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError("is no name of a variable; valid: letters, digits and _")
    return text


Value = Annotated[str, AfterValidator(_value)]
"""One line without control characters; it can be empty."""

Line = Annotated[str, AfterValidator(_line)]
"""One non-empty line without control characters."""

Word = Annotated[str, AfterValidator(_word)]
"""A line without spaces, for contexts where a space begins the next option."""

Variable = Annotated[str, AfterValidator(_variable)]
"""The name of an environment variable."""

FROM_FILES: dict[str, Any] = {"atom": "from files"}
"""Mark of a text field that only describes something: it runs nothing and sends nothing."""


def users_alone(model: type[BaseModel]) -> frozenset[str]:
    """Return the fields of a model that only the user may set."""
    return frozenset(name for name, field in model.model_fields.items() if _is_closed(field))


def _is_closed(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    marked = isinstance(extra, dict) and FROM_FILES.items() <= extra.items()
    return not marked and _holds_text(field.annotation)


def _holds_text(annotation: Any) -> bool:
    if annotation in (int, float, bool, None, types.NoneType):
        return False
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return False
    if origin is Annotated:
        return _holds_text(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, list, tuple):
        return any(_holds_text(a) for a in typing.get_args(annotation) if a is not ...)
    return True
