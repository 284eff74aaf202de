"""Find numbers in rows of metrics by name.

A name is a field (``loss``), a result of a validation set (``validation.SET.loss``) or a value of a
callback (``callbacks.NAME.VALUE``). ``*`` in VALUE stands for any text: of several values, the
highest counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from atom.errors import UserError, nearest
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.validated import LOSSES

if TYPE_CHECKING:
    from atom.recipe.run import Run

_CALLBACKS = "callbacks."


def check(run: Run, key: str, name: str, sets: Iterable[str], *, value: object) -> None:
    """Refuse a name of a number that the run does not measure.

    Args:
        run: the run.
        key: the key with the name.
        name: the name.
        sets: the names of the validation sets.
        value: the value of the key: the name, or a list with it.

    Raises:
        UserError: names the nearest ones.
    """
    measured = [*_fields(), *(f"validation.{one}.{loss}" for one in sets for loss in LOSSES)]
    if name in measured:
        return
    callbacks: dict[str, Any] = dict(run.callbacks)
    callback, _, rest = name.removeprefix(_CALLBACKS).partition(".")
    if name.startswith(_CALLBACKS) and callback in callbacks and rest:
        return
    measured += [f"{_CALLBACKS}{callback}.VALUE" for callback in callbacks]
    which = "" if value == name else f"{name} "
    raise UserError(
        f"{which}is no number that is measured; {nearest(name, measured)}", key=key, value=value
    )


def find(row: StepMetrics, name: str) -> tuple[str, float] | None:
    """Return a number of a row and its own name, which differs from a name with ``*``."""
    if name.startswith(_CALLBACKS):
        found = _matching(row, name)
        return max(found, key=lambda item: (math.isnan(item[1]), item[1]), default=None)
    if "." not in name:
        value = getattr(row, name)
    else:
        _, of, value_name = name.split(".")
        result = (row.validation or {}).get(of)
        value = None if result is None else result.numbers().get(value_name)
    return None if value is None else (name, value)


def value(row: StepMetrics, name: str) -> float | None:
    """Return a number of a row; None without one."""
    found = find(row, name)
    return None if found is None else found[1]


def not_logged(row: StepMetrics, name: str) -> str | None:
    """Return a sentence if the callback has logged values in this row, and none with this name."""
    callback = name.removeprefix(_CALLBACKS).partition(".")[0]
    logged = (row.callbacks or {}).get(callback)
    if not name.startswith(_CALLBACKS) or not logged or _matching(row, name):
        return None
    valid = nearest(name, [f"{_CALLBACKS}{callback}.{key}" for key in logged])
    return f"metrics.show: {name} is not among the values of step {row.step:,}; {valid}"


def short(name: str) -> str:
    """Return a name as screens and tables show it."""
    return name.removeprefix(_CALLBACKS)


def text(value: float) -> str:
    """Return a number as screens and tables show it."""
    return f"{value:.4g}"


def last(rows: Iterable[StepMetrics], name: str) -> tuple[str, float] | None:
    """Return the last number with this name in ``rows``, and its own name."""
    found = None
    for row in rows:
        found = find(row, name) or found
    return found


def is_in(rows: Iterable[StepMetrics], name: str) -> bool:
    """Return whether a row has a number with this name."""
    if not name.startswith(_CALLBACKS) and not _is_field(name):
        return False
    return last(rows, name) is not None


def names(rows: Iterable[StepMetrics]) -> list[str]:
    """Return the names of the numbers in ``rows``."""
    found = dict.fromkeys(_fields())
    for row in rows:
        for of, result in (row.validation or {}).items():
            found |= dict.fromkeys(f"validation.{of}.{key}" for key in result.numbers())
        for of, values in (row.callbacks or {}).items():
            found |= dict.fromkeys(f"{_CALLBACKS}{of}.{key}" for key in values)
    return list(found)


def nearest_in(rows: Iterable[StepMetrics], name: str) -> str:
    """Return the names in ``rows`` that are nearest to ``name``, in words."""
    return nearest(name, names(rows))


def _fields() -> list[str]:
    fields = dataclasses.fields(StepMetrics)
    return [field.name for field in fields if str(field.type).startswith(("int", "float"))]


def _is_field(name: str) -> bool:
    return name in _fields() or (name.startswith("validation.") and name.count(".") == 2)


def _matching(row: StepMetrics, name: str) -> list[tuple[str, float]]:
    callback, _, pattern = name.removeprefix(_CALLBACKS).partition(".")
    values = (row.callbacks or {}).get(callback, {})
    if "*" not in pattern:
        return [(name, values[pattern])] if pattern in values else []
    # Brackets and question marks are characters of a name, not patterns.
    pattern = pattern.replace("[", "[[]").replace("?", "[?]")
    return [
        (f"{_CALLBACKS}{callback}.{key}", value)
        for key, value in values.items()
        if fnmatchcase(key, pattern)
    ]
