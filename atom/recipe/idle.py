"""Refuse component parameters that have no effect because of another parameter.

A plugin marks them in its parameter model; only values that the user has set are refused::

    rope_factor: Annotated[float, Idle("rope_scaling", "none")] = Field(default=8.0)
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from atom.errors import UserError, shown
from atom.recipe.run import COMMAND_LINE


class Idle:
    """A mark of a parameter that has no effect while another one has one of ``values``.

    Args:
        other: the name of that parameter.
        values: by default every value except null.
    """

    def __init__(self, other: str, *values: object) -> None:
        self.other = other
        self.values = values

    def because(self, parameters: BaseModel) -> bool:
        """Return whether the other parameter has one of the values."""
        value = getattr(parameters, self.other)
        return value in self.values if self.values else value is not None


def check(section: str, parameters: BaseModel | None, given: Callable[[str], str | None]) -> None:
    """Refuse parameters that the user has set and that have no effect.

    Args:
        section: the key of the component.
        parameters: the component's validated parameters; None if it has none.
        given: returns where the user has set a key, or None.

    Raises:
        UserError: names the first such parameter, and the one that makes it ineffective.
    """
    for name, field in type(parameters).model_fields.items() if parameters is not None else ():
        value, key = getattr(parameters, name), f"{section}.{name}"
        for idle in field.metadata:
            if not isinstance(idle, Idle) or value == field.default:
                continue
            assert parameters is not None
            other = f"{section}.{idle.other}"
            # A value from a file that the command line makes ineffective is overridden on purpose.
            origin, typed = given(key), COMMAND_LINE in (given(other), given(section))
            if origin is None or (origin != COMMAND_LINE and typed):
                continue
            if idle.because(parameters):
                found = shown(getattr(parameters, idle.other))
                raise UserError(
                    f"has no effect with {other}={found}",
                    valid="leave it out",
                    key=key,
                    value=value,
                )
