"""Define the message for each kind of pydantic fault, in a user's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SECTION = "must be a section of keys"
_LIST = "must be a list, such as [a,b]"
_WHOLE = "must be a whole number"
_NUMBER = "must be a number"
_SWITCH = "must be true or false"
_DATE = "must be a date, such as 2026-01-31"
_DATE_TIME = "must be a date and a time, such as 2026-01-31T12:00:00"
_TIME = "must be a time, such as 12:00:00"
_DURATION = "must be a duration, such as 1:30:00"
_ADDRESS = "must be an address, such as https://example.org"
_UUID = "must be a UUID"
_COMPLEX = "must be a complex number, such as 1+2j"
_FRACTION = "must be a fraction, such as 1/3"

WORDS: dict[str, str] = {
    # sections
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "dataclass_type": _SECTION,
    "dataclass_exact_type": _SECTION,
    "dict_type": _SECTION,
    "frozen_dict_type": _SECTION,
    "ordered_dict_type": _SECTION,
    "counter_type": _SECTION,
    "mapping_type": _SECTION,
    "arguments_type": _SECTION,
    "invalid_key": "must be a name",
    "default_factory_not_called": "depends on a key with an invalid value",
    "union_tag_invalid": "must have {discriminator} among {expected_tags}",
    "union_tag_not_found": "must have {discriminator}",
    # lists
    "list_type": _LIST,
    "deque_type": _LIST,
    "tuple_type": _LIST,
    "set_type": _LIST,
    "frozen_set_type": _LIST,
    "iterable_type": _LIST,
    "named_tuple_type": _LIST,
    "iteration_error": _LIST,
    "set_item_not_hashable": "must be a text or a number",
    "too_short": "must have at least {min_length} entries, and has {actual_length}",
    "too_long": "must have at most {max_length} entries, and has {actual_length}",
    "unexpected_positional_argument": "is one entry too many",
    # numbers
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "int_parsing_size": "must be a whole number of fewer digits",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "decimal_type": _NUMBER,
    "decimal_parsing": _NUMBER,
    "decimal_max_digits": "must have at most {max_digits} digits",
    "decimal_max_places": "must have at most {decimal_places} digits after the point",
    "decimal_whole_digits": "must have at most {whole_digits} digits before the point",
    "complex_type": _COMPLEX,
    "complex_str_parsing": _COMPLEX,
    "fraction_type": _FRACTION,
    "fraction_parsing": _FRACTION,
    "finite_number": "must be a finite number",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    # text
    "string_type": "must be text",
    "string_sub_type": "must be text",
    "string_unicode": "must be text in UTF-8",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match the regular expression {pattern}",
    "string_not_ascii": "must have no other letters than a to z",
    "bytes_type": "must be text",
    "bytes_too_short": "must have at least {min_length} bytes",
    "bytes_too_long": "must have at most {max_length} bytes",
    "bytes_invalid_encoding": "must be {encoding}",
    "path_type": "must be a path",
    "json_type": "must be JSON",
    "json_invalid": "must be JSON",
    # choices
    "bool_type": _SWITCH,
    "bool_parsing": _SWITCH,
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "none_required": "must be null",
    # times, addresses, identifiers
    "date_type": _DATE,
    "date_parsing": _DATE,
    "date_from_datetime_parsing": _DATE,
    "date_from_datetime_inexact": _DATE,
    "date_past": "must be in the past",
    "date_future": "must be in the future",
    "datetime_type": _DATE_TIME,
    "datetime_parsing": _DATE_TIME,
    "datetime_object_invalid": _DATE_TIME,
    "datetime_from_date_parsing": _DATE_TIME,
    "datetime_past": "must be in the past",
    "datetime_future": "must be in the future",
    "time_type": _TIME,
    "time_parsing": _TIME,
    "time_delta_type": _DURATION,
    "time_delta_parsing": _DURATION,
    "timezone_naive": "must have no time zone",
    "timezone_aware": "must have a time zone, such as +00:00",
    "timezone_offset": "must be {tz_expected} seconds from UTC",
    "url_type": _ADDRESS,
    "url_parsing": _ADDRESS,
    "url_syntax_violation": _ADDRESS,
    "url_too_long": "must have at most {max_length} characters",
    "url_scheme": "must begin with {expected_schemes}",
    "uuid_type": _UUID,
    "uuid_parsing": _UUID,
    "uuid_version": "must be a UUID of version {expected_version}",
    # faults that only a plugin's own validators raise
    "recursion_loop": "refers to itself",
    "recursion_depth_exceeded": "is too deep",
    "is_instance_of": "cannot be written in a configuration",
    "is_subclass_of": "cannot be written in a configuration",
    "callable_type": "cannot be written in a configuration",
    "missing_sentinel_error": "cannot be written in a configuration",
    "ellipsis_error": "cannot be written in a configuration",
}
"""Kind of fault -> message; braces hold values from pydantic."""

QUOTED = {"string_type", "string_sub_type", "path_type"}
"""Faults of a value that YAML has parsed as something other than text."""


def words(fault: Mapping[str, Any]) -> str | None:
    """Return the message for a pydantic fault; None for a kind that a plugin has defined."""
    kind, value = fault["type"], fault["input"]
    if kind in ("too_short", "too_long") and isinstance(value, str):
        kind = f"string_{kind}"  # pydantic has no such kind for text
    template = WORDS.get(kind)
    if template is None:
        return None
    text = template.format_map(fault.get("ctx") or {})
    if fault["type"] in QUOTED and isinstance(value, bool | int | float):
        text += f"; YAML reads this as {'a switch' if isinstance(value, bool) else 'a number'}: "
        text += "put it in quotes there"
    return text.replace(" 1 entries", " 1 entry").replace(" 1 characters", " 1 character")
