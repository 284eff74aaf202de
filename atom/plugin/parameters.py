"""Define the type of a parameter that is a component: its name, and its parameters beside it.

A separate module, because it imports pydantic, which listing plugins must not do::

    from atom.plugin import Dataset
    from atom.plugin.parameters import Component

    class Mixture(BaseModel):
        sources: dict[str, Component[Dataset]] = Field(description="name -> a dataset")

A run then sets ``dataset.sources.web={name: local, path: texts}``. ATOM validates the parameters of
each such component before the run, like those of the run's own components, and the code opens it
with ``context.open(Dataset, config.sources["web"])``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from atom.plugin.declarations import Declaration

K = TypeVar("K", bound=Declaration)


class Component(BaseModel, Generic[K]):
    """A component named by a run or by another component.

    A subclass can add its own keys, which stand beside the component's parameters::

        class Source(Component[Dataset]):
            weight: float = Field(default=1.0, gt=0, description="share of the documents")
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="NAME, or PACKAGE:NAME where two packages offer the same name")

    @model_validator(mode="before")
    @classmethod
    def _is_a_section(cls, value: object) -> object:
        """Accept a bare name as a component without parameters."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Component) and not isinstance(value, cls):
            return dict(value)
        return value

    @property
    def parameters(self) -> dict[str, Any]:
        """The component's own parameters, as the user wrote them."""
        return dict(self.model_extra or {})

    def __reduce__(self) -> Any:
        # Component[Dataset] is a generated class, which has no name in any module.
        generic = type(self).__pydantic_generic_metadata__
        if generic["origin"] is None:
            return super().__reduce__()
        return _restored, (generic["origin"], generic["args"], self.__getstate__())


def kind_of(component: type[Component[Any]]) -> type[Declaration] | None:
    """Return the kind of ``Component[KIND]`` or of a subclass of it; None if it has no kind."""
    for owner in component.__mro__:
        generic = vars(owner).get("__pydantic_generic_metadata__")
        for argument in generic["args"] if generic else ():
            if isinstance(argument, type):
                return cast("type[Declaration]", argument)
    return None


def components(value: object, key: str) -> Iterator[tuple[str, Component[Any]]]:
    """Yield the components in ``value``, a model, a dataclass or a collection, with their keys.

    Args:
        value: validated value of a field.
        key: the key of the value, such as ``dataset``; empty for a whole run.
    """
    if isinstance(value, Component):
        yield key, value
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            yield from components(getattr(value, name), _below(key, spelled(name, field)))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from components(getattr(value, each.name), _below(key, each.name))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from components(inner, _below(key, name))
    elif isinstance(value, Collection) and not isinstance(value, str | bytes | bytearray):
        for index, inner in enumerate(value):
            yield from components(inner, _below(key, index))


def spelled(name: str, field: FieldInfo) -> str:
    """Return the name of a model's field in a run: its alias, if it has one."""
    alias = field.validation_alias or field.alias
    return alias if isinstance(alias, str) else name


def _below(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _restored(origin: Any, kinds: tuple[Any, ...], state: dict[Any, Any]) -> Component[Any]:
    made: Callable[[Any], Component[Any]] = origin[kinds].__new__
    component = made(origin[kinds])
    component.__setstate__(state)
    return component
