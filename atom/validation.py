"""Validate a section of a run against a model, and say in one sentence what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from atom.errors import UserError, nearest

T = TypeVar("T")


def validated(adapter: TypeAdapter[T], section: object, *, key: str, fields: Iterable[str]) -> T:
    """Return ``section`` as the adapter's type.

    Args:
        adapter: wraps a pydantic model or a dataclass.
        section: what the configuration holds under ``key``.
        key: where the section stands, such as ``training``; empty for the whole run.
        fields: the names that are valid in it, to suggest the nearest of.

    Raises:
        UserError: names the first key at fault.
    """
    try:
        return adapter.validate_python(section)
    except ValidationError as error:
        raise _explain(error.errors()[0], key, section, fields) from None


def _explain(
    error: Mapping[str, Any], key: str, section: object, fields: Iterable[str]
) -> UserError:
    path = [key] if key else []
    path += [str(part) for part in error["loc"] if not str(part).startswith("function-")]
    name = ".".join(path)
    kind = error["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        value = error["input"]
        hint = nearest(path[-1], fields)
        while isinstance(value, Mapping) and len(value) == 1:
            ((part, value),) = value.items()
            name = f"{name}.{part}"
        return UserError(f"{path[-1]} is no key here; {hint}", key=name, value=value)
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return UserError("is required and has no value", key=name)
    if kind in ("value_error", "assertion_error"):
        # The model's own words: they name the fields, so the section's dump would only hide them.
        reason = str(error["ctx"]["error"]).rstrip(".")
        if isinstance(section, Mapping) and error["input"] is not section and len(error["loc"]):
            return UserError(reason, key=name, value=error["input"])
        return UserError(reason, key=name or None)
    message = error["msg"].rstrip(".")
    message = message[0].lower() + message[1:]
    return UserError(message, key=name, value=error["input"])
