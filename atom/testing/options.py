"""Set options of a suite in the conformance line, in addition to the component's parameters."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

T = TypeVar("T", bound="Options")


class Options:
    """A suite with options: ``conformance(…).having(name=value)``.

    Attributes:
        options: names of the suite's attributes that can be set.
    """

    options: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def having(cls: type[T], **values: Any) -> type[T]:
        """Return the suite with some of its ``options`` set.

        Raises:
            ValueError: the suite has no such option.
        """
        for name in values:
            if name not in cls.options:
                raise ValueError(f"{cls.__name__} has no option {name}; valid: {cls.options}")
        return type(cls.__name__, (cls,), values)
