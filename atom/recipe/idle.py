"""Parameters of a component that are without effect because of another one of it.

A plugin marks them in its parameters' model, and only what the user has set is refused::

    rope_factor: Annotated[float, Idle("rope_scaling", "none")] = Field(default=8.0)
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from atom.errors import UserError, shown
from atom.recipe.run import COMMAND_LINE


class Idle:
    """Marks a parameter that does nothing where another one of its model has one of ``values``.

    Args:
        other: the name of that parameter.
        values: by default all that it can be set to, but null.
    """

    def __init__(self, other: str, *values: object) -> None:
        self.other = other
        self.values = values

    def because(self, parameters: BaseModel) -> bool:
        """Return whether the other parameter is so."""
        value = getattr(parameters, self.other)
        return value in self.values if self.values else value is not None


def check(kind: str, parameters: BaseModel | None, given: Callable[[str], str | None]) -> None:
    """Refuse parameters that the user has set and that nothing would come of.

    Args:
        kind: the section of the component.
        parameters: the component's, filled in; None if it has none.
        given: tells where the user has set a key, if at all.

    Raises:
        UserError: names the first such parameter, and the one that leaves it without effect.
    """
    for name, field in type(parameters).model_fields.items() if parameters is not None else ():
        value, key = getattr(parameters, name), f"{kind}.{name}"
        for idle in field.metadata:
            if not isinstance(idle, Idle) or value == field.default:
                continue
            assert parameters is not None
            other = f"{kind}.{idle.other}"
            # What a file has set, and what is typed does not come to, is left out on purpose.
            origin, typed = given(key), COMMAND_LINE in (given(other), given(kind))
            if origin is None or (origin != COMMAND_LINE and typed):
                continue
            if idle.because(parameters):
                found = shown(getattr(parameters, idle.other))
                raise UserError(
                    f"has no effect with {other}={found}; valid: leave it out", key=key, value=value
                )
