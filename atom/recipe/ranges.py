"""Define the valid range of each numeric key of a run.

ATOM's own fields have a :class:`Range` in their type. torchtitan's dataclasses define types without
ranges: the ranges of its keys are in :data:`ENGINE_RANGES`.
"""

from __future__ import annotations

import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import core_schema

from atom.errors import UserError
from atom.plugin.parameters import spelled

if TYPE_CHECKING:
    from atom.recipe.sections import Section

_LARGEST = {True: 2**63 - 1, False: sys.float_info.max}
"""Largest number, by ``whole``: torch counts in 64 bits."""


@dataclass(frozen=True)
class Range:
    """The valid numbers of a key; infinity and NaN are never valid.

    Args:
        least: the minimum.
        most: the maximum; None if only the type limits it.
        above: whether ``least`` itself is excluded.
        whole: whether the number must be an integer.
        also: additional valid numbers, each with its meaning.
        null: the meaning of null; None if a number is required.
    """

    least: float
    most: float | None = None
    above: bool = False
    whole: bool = True
    also: tuple[tuple[int, str], ...] = ()
    null: str | None = None

    def holds(self, value: object) -> bool:
        """Return whether ``value`` is in the range; text counts as the number that it spells."""
        if value is None:
            return self.null is not None
        found = number(value)
        if found is None or (self.whole and found != int(found)):
            return False
        if self.whole and isinstance(value, str) and isinstance(found, float):
            return False
        if any(found == extra for extra, _ in self.also):
            return True
        most = _LARGEST[self.whole] if self.most is None else self.most
        return (self.least < found if self.above else self.least <= found) and found <= most

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Validate a field with this range in its type; text may spell the number."""
        return core_schema.no_info_before_validator_function(self._checked, handler(source))

    def _checked(self, value: object) -> object:
        if not self.holds(value):
            raise ValueError(f"valid: {self}")
        return self.converted(value)

    def converted(self, value: object) -> object:
        """Return the number that a valid value is or spells."""
        found = number(value)
        return found if found is None or not self.whole else int(found)

    def __str__(self) -> str:
        words = "a whole number" if self.whole else "a number"
        if self.most is not None:
            words += f" from {self.least} to {self.most}"
        elif self.above:
            words += f" above {self.least}"
        else:
            words += f" from {self.least} up"
        also = [f"{number} {meaning}" for number, meaning in self.also]
        also += [f"null {self.null}"] if self.null is not None else []
        return ", or ".join([words, *also])


_COUNT = Range(1)
_NATURAL = Range(0)
_SHARE = Range(0, 1, whole=False)
_SECONDS = Range(1, 10**9)
_TORCHS = "for torch's default"

ENGINE_RANGES: dict[str, Range] = {
    "training.gc_freq": _COUNT,
    "activation_checkpoint.memory_budget": _SHARE,
    "checkpoint.load_step": Range(0, also=((-1, "for the newest"),)),
    "comm.init_timeout_seconds": _SECONDS,
    "comm.train_timeout_seconds": _SECONDS,
    "comm.trace_buf_size": _NATURAL,
    "profiler.profile_freq": _COUNT,
    "profiler.profiler_repeat": Range(0, null=_TORCHS),
    "profiler.profiler_skip_first": Range(0, null=_TORCHS),
    "profiler.profiler_skip_first_wait": Range(0, null=_TORCHS),
    "profiler.profiler_active": _COUNT,
    "profiler.profiler_warmup": _NATURAL,
    "profiler.memory_snapshot_freq": Range(1, null="for profile_freq"),
    "profiler.memory_snapshot_max_entries": _COUNT,
    "parallelism.pipeline_parallel_first_stage_less_layers": _NATURAL,
    "parallelism.pipeline_parallel_last_stage_less_layers": _NATURAL,
    "parallelism.pipeline_parallel_layers_per_stage": Range(1, null="for torchtitan's choice"),
}
"""Range of each numeric key that only torchtitan defines; a test compares them with its
dataclasses.
"""


def check(sections: Section) -> Section:
    """Return the sections with the engine's numbers converted from text where necessary.

    Raises:
        UserError: a number of the engine is out of its range.
    """
    found = dict(sections)
    for key, valid in ENGINE_RANGES.items():
        name, _, last = key.partition(".")
        section = found.get(name)
        if not isinstance(section, dict) or last not in section:
            continue
        if not valid.holds(section[last]):
            raise UserError(valid=f"{valid}", key=key, value=section[last])
        found[name] = section | {last: valid.converted(section[last])}
    return found


def is_numeric(annotation: Any) -> bool:
    """Return whether a type accepts numbers, alone or in a list, and no booleans."""
    if annotation in (int, float):
        return True
    if typing.get_origin(annotation) is typing.Annotated:
        return is_numeric(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple, list):
        options = typing.get_args(annotation)
        return bool not in options and any(map(is_numeric, options))
    return False


def refuse_odd(value: object) -> None:
    """Refuse values that Python and pydantic accept as numbers but a run does not: true, infinity,
    NaN.

    Raises:
        ValueError: ``value`` is or contains one of them.
    """
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, bool) or (isinstance(one, float | str) and _is_endless(one)):
            raise ValueError("valid: a finite number")


def refuse_odd_in(annotation: Any, value: object, key: str) -> None:
    """Refuse odd numbers (:func:`refuse_odd`) in a value of a type, at any depth.

    Args:
        annotation: type of the value; pydantic models, collections and unions with null.
        value: the unvalidated value.
        key: the key of the value.

    Raises:
        UserError: names the key of the number.
    """
    if is_numeric(annotation):
        try:
            refuse_odd(value)
        except ValueError as error:
            raise UserError(str(error), key=key, value=value) from None
    options = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        options = options[:1]
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        options = tuple(option for option in options if option is not type(None))
        if len(options) == 1:  # another option may accept the number
            refuse_odd_in(options[0], value, key)
    elif isinstance(value, Mapping):
        for name, inner in _types_of_keys(annotation, value).items():
            refuse_odd_in(inner, value[name], f"{key}.{name}")
    elif isinstance(value, list | tuple) and options:
        each = options if origin is tuple and ... not in options else options[:1] * len(value)
        for index, (inner, one) in enumerate(zip(each, value, strict=False)):
            refuse_odd_in(inner, one, f"{key}.{index}")


def _types_of_keys(annotation: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """Return key -> type of the keys of ``value`` that a model or a type of dictionary has."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        found = {spelled(name, field): field.annotation for name, field in fields}
        return {name: found[name] for name in value if name in found}
    options = typing.get_args(annotation)
    return dict.fromkeys(value, options[1]) if len(options) == 2 else {}


def _is_endless(value: float | str) -> bool:
    try:
        return not math.isfinite(float(value))
    except ValueError:
        return False  # the field reports text that is not a number


def number(value: object) -> float | int | None:
    """Return the finite number that ``value`` is or spells, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                return None
    return value if isinstance(value, int) or math.isfinite(value) else None
