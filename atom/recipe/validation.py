"""Validate a section of a run against a model, and report a fault in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from atom.errors import UserError, nearest
from atom.recipe.validation_words import words

T = TypeVar("T")


def validated(adapter: TypeAdapter[T], section: object, *, key: str, fields: Iterable[str]) -> T:
    """Return ``section`` as the adapter's type.

    Args:
        adapter: wraps a pydantic model or a dataclass.
        section: the value of ``key`` in the configuration.
        key: the path of the section, such as ``training``; empty for the whole run.
        fields: the valid names in it, for suggestions; for a pydantic model with its fields, which
            also give the names in nested sections.

    Raises:
        UserError: names the first key at fault.
    """
    try:
        return adapter.validate_python(section)
    except ValidationError as error:
        raise _explain(error.errors(), key, section, fields) from None


def unknown(path: Sequence[str], value: object, fields: Iterable[str]) -> UserError:
    """Return the error for an unknown key, with the most similar one of ``fields``."""
    name = ".".join(path)
    hint = nearest(path[-1], fields)
    while isinstance(value, Mapping) and len(value) == 1:
        ((part, value),) = value.items()
        name = f"{name}.{part}"
    return UserError(f"{path[-1]} is no key here; {hint}", key=name, value=value)


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = (
    "missing",
    "missing_argument",
    "missing_keyword_only_argument",
    "missing_positional_only_argument",
)


def _explain(
    faults: Sequence[Mapping[str, Any]], key: str, section: object, fields: Iterable[str]
) -> UserError:
    # A misspelled key is also a missing one: report the spelling.
    misspelt = [fault for fault in faults if fault["type"] in _UNKNOWN]
    error = misspelt[0] if misspelt and faults[0]["type"] in _MISSING else faults[0]
    place = _place(error, section)
    path = ([key] if key else []) + place
    name = ".".join(path)
    kind = error["type"]
    if kind in _UNKNOWN:
        return unknown(path, error["input"], _fields(fields, place[:-1]))
    if kind in _MISSING:
        if place[-1].isdecimal() and isinstance(section, Mapping):  # an item of a list
            return UserError("has too few entries", key=name.rpartition(".")[0])
        valid = "a name that `atom plugins` lists" if place[-1] == "name" else None
        return UserError("is required and has no value", valid=valid, key=name)
    if kind in ("value_error", "assertion_error"):
        # The validator's own message: it names the fields, so the section's dump adds nothing.
        reason = str(error["ctx"]["error"]).rstrip(".")
        if isinstance(section, Mapping) and error["input"] is not section and len(error["loc"]):
            return UserError(reason, key=name, value=error["input"])
        return UserError(reason, key=name or None)
    # A value of a union type has one fault per type.
    alike = [fault for fault in faults if _place(fault, section) == place]
    return UserError(_joined([_said(fault) for fault in alike]), key=name, value=error["input"])


def _fields(fields: Iterable[str], above: Sequence[str]) -> Iterable[str]:
    """Return the valid names below some keys; ``fields`` are those at the top level."""
    for part in above:
        field = fields.get(part) if isinstance(fields, Mapping) else None
        fields = getattr(getattr(field, "annotation", None), "model_fields", {})
    return fields


def _place(error: Mapping[str, Any], section: object) -> list[str]:
    """Return the keys that lead to a fault, without the types that pydantic inserts."""
    found: list[str] = []
    here: Any = section
    for part in error["loc"]:
        if (isinstance(here, Mapping) and part in here) or (
            isinstance(here, list | tuple) and isinstance(part, int) and part < len(here)
        ):
            here = here[part]
        elif not (error["type"] in _MISSING and part == error["loc"][-1]):
            continue
        found.append(str(part))
    return found


def _said(fault: Mapping[str, Any]) -> str:
    if (own := words(fault)) is not None:
        return own
    message: str = fault["msg"].rstrip(".")
    return message[0].lower() + message[1:]


def _joined(said: Sequence[str]) -> str:
    """Join several messages to `must be A or B`."""
    first, *others = dict.fromkeys(said)
    common = "must be "
    return " or ".join([first, *(words.removeprefix(common) for words in others)])
