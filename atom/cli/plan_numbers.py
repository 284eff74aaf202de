"""Read the numbers that ``atom plan`` is given."""

from __future__ import annotations

import math

from atom.errors import UserError


def number(key: str, text: str, limits: tuple[float, float], *, whole: bool = False) -> float:
    """Return a number of the command line.

    Args:
        key: its key.
        text: as typed.
        limits: the least and the greatest value.
        whole: whether it must be a whole number.

    Raises:
        UserError: it is none, or out of range.
    """
    low, high = limits
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (whole and value != int(value)):
        what = "a whole number" if whole else "a number"
        valid = f"{what} from {low:g} to {high:g}"
        raise UserError(key=key, value=text, origin="command line", valid=valid)
    return value
