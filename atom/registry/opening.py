"""Open components by name: those of a run, and those that other components name or open."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from atom.data.dealing import dealt
from atom.data.order import NEWEST
from atom.errors import UserError
from atom.io import caches
from atom.plugin import Context, Dataset, Declaration, DocumentSource, SourceContext
from atom.plugin import parameters as nested
from atom.recipe import checks, idle
from atom.recipe.run import COMMAND_LINE, nowhere
from atom.registry.configured import configured, model_of
from atom.registry.host import Component, Host, resolve
from atom.registry.renaming import absolute, placed, renamed, renamed_source

_DEEPEST = 16
"""Limit on the depth of components that open each other; a deeper chain is a cycle."""

C = TypeVar("C", bound=Context)
J = TypeVar("J", bound=Declaration)
K = TypeVar("K", bound=Declaration)


class Opener:
    """A service that opens components of a host.

    Attributes:
        order: the version of the order in which documents are dealt (:mod:`atom.data.order`).
        records: true if datasets should yield records.
        packages: the packages of all components opened so far.
    """

    def __init__(
        self,
        host: Host,
        given: Callable[[str], str | None] = nowhere,
        order: int | None = None,
    ) -> None:
        self._host = host
        self._given = given
        self.order = NEWEST if order is None else order
        self.records = False
        self.packages: set[str] = set()

    def of_section(
        self,
        kind: type[K],
        section: nested.Component[Any],
        key: str,
        *,
        above: tuple[Chosen[Any], ...] = (),
    ) -> Chosen[K]:
        """Return the component that a section names, with its parameters validated.

        Args:
            kind: kind of the component.
            section: a name, and parameters beside it.
            key: the key of the section.
            above: the components that contain it, outermost first.

        Raises:
            UserError: with the user's keys.
        """
        others = tuple(type(section).model_fields)
        return self.choose(kind, section.name, section.parameters, key, also=others, above=above)

    def choose(
        self,
        kind: type[K],
        name: object,
        parameters: Mapping[str, Any],
        key: str,
        *,
        also: Iterable[str] = ("name",),
        above: tuple[Chosen[Any], ...] = (),
    ) -> Chosen[K]:
        """Return a component with its parameters, and with the components in them, validated.

        ``also`` are the keys beside the parameters; the other arguments are as for
        :meth:`of_section`.
        """
        if not isinstance(name, str):
            raise UserError("must be the name of a component", key=f"{key}.name", value=name)
        if kind.users_alone and above:
            self._refuse_files(kind, key, {"name": name, **parameters})
        component = self._host.find(kind.kind, name, key=f"{key}.name")
        self.packages.add(component.plugin.package)
        if kind.engine_parameters:
            if above:
                with renamed(kind.section, key):
                    checks.section(kind.section, {"name": name, **parameters})
            return Chosen(component, None, key, self, above)
        if kind.alike:
            self._refuse_others(component, parameters, key)
        config = configured(component, parameters, key=key, also=also)
        idle.check(key, config, self._given)
        return self.chosen(component, config, key, above=above)

    def declaration(self, kind: type[K], name: str) -> K | None:
        """Return the declaration of a component; None if it cannot be found."""
        try:
            return self._host.find(kind.kind, name).declaration  # type: ignore[return-value]
        except UserError:
            return None

    def _refuse_others(self, component: Component, parameters: Mapping[str, Any], key: str) -> None:
        """Refuse a parameter that only other components of the kind have, and name them."""
        own = _keys(component)
        for name, value in parameters.items():
            if name in own:
                continue
            every = [c for c in self._host.components if c.kind == component.kind]
            having = sorted({c.name for c in every if name in _keys(c)})
            if having:
                raise UserError(
                    f"has no effect with {key}.name={component.name}",
                    valid=f"leave it out, or {key}.name={' or '.join(having)}",
                    key=f"{key}.{name}",
                    value=value,
                )

    def _refuse_files(self, kind: type[Declaration], key: str, section: Mapping[str, Any]) -> None:
        """Refuse an untrusted file that sets what a nested component runs, or where it sends data.

        For the run's own section, :mod:`atom.compose.users_alone` does this.
        """
        for name, value in section.items():
            if self._given(f"{key}.{name}") not in (None, COMMAND_LINE):
                raise UserError(
                    f"a file must not set what a {kind.kind} runs for another component",
                    valid="the command line",
                    key=f"{key}.{name}",
                    value=value,
                )

    def chosen(
        self,
        component: Component,
        config: BaseModel | None,
        key: str | None = None,
        *,
        above: tuple[Chosen[Any], ...] = (),
    ) -> Chosen[Any]:
        """Return a component with parameters that have already been validated."""
        key = component.declaration.section if key is None else key
        chosen: Chosen[Any] = Chosen(component, config, key, self, above)
        if any(chosen.is_again(other) for other in above):
            circle = " → ".join(other.component.name for other in (*above, chosen))
            raise UserError(f"components open each other in a circle: {circle}", key=key)
        if len(above) >= _DEEPEST:
            raise UserError(f"components open each other more than {_DEEPEST} deep", key=key)
        parts = []
        for place, section in nested.components(config, key):
            kind = nested.kind_of(type(section))
            if kind is None:
                raise UserError(
                    f"{component.owner} cannot be used: a field is a Component without a kind, and "
                    "must be a Component[KIND]",
                    key=place,
                )
            parts.append(self.of_section(kind, section, place, above=(*above, chosen)))
        return replace(chosen, parts=tuple(parts))


@dataclass(frozen=True)
class Chosen(Generic[K]):
    """A component with its parameters: an :class:`atom.plugin.Opened`.

    Attributes:
        component: the component of a plugin.
        config: its parameters, as the model that its declaration references; None if it has none.
        key: where the user wrote it.
        above: the components that opened it, outermost first.
        parts: the components that its parameters name.
    """

    component: Component
    config: Any
    key: str
    opener: Opener = field(repr=False, compare=False)
    above: tuple[Chosen[Any], ...] = field(default=(), repr=False)
    parts: tuple[Chosen[Any], ...] = ()

    @property
    def declaration(self) -> K:
        return self.component.declaration  # type: ignore[return-value]

    def every(self) -> Iterator[Chosen[Any]]:
        """Yield this component and, recursively, those that its parameters name."""
        yield self
        for part in self.parts:
            yield from part.every()

    def is_again(self, other: Chosen[Any]) -> bool:
        """Return whether ``other`` is the same component with the same parameters."""
        return (self.component, self.config) == (other.component, other.config)

    def code(self, reference: str) -> Callable[..., Any]:
        """Import the code that the declaration's ``reference`` (``build``, ``prepare``,
        …) names.
        """
        return resolve(getattr(self.declaration, reference), self.component)

    def call(self, reference: str, *arguments: Any, config: Any = None) -> Any:
        """Call code of the component with its parameters: see :class:`atom.plugin.Opened`.

        A dataset's source is returned with a method ``lane``, even if it has random access.

        Args:
            reference: the field of the declaration.
            arguments: the arguments after the parameters.
            config: replaces the parameters.
        """
        code = self.code(reference)
        given = [self.completed(a) if isinstance(a, Context) else a for a in arguments]
        more: dict[str, Any] = {}
        if takes_context(code) and not any(isinstance(a, Context) for a in arguments):
            more["context"] = self.context()
        kind, fields = self.declaration.kind, self._fields
        with renamed(kind, self.key, fields):
            made = code(self.config if config is None else config, *given, **more)
        if not isinstance(self.declaration, Dataset) or reference != "source":
            return made
        if self.key != kind:
            made = renamed_source(made, kind, self.key, fields)
        return dealt(made, self.opener.order)

    def context(self) -> SourceContext:
        """Return the context for the component's code."""

        def open_dataset(name: str, parameters: Mapping[str, Any], key: str) -> DocumentSource:
            opened: Chosen[Dataset] = self._opened(Dataset, name, parameters, key)
            source: DocumentSource = opened.call("source")
            return source

        plugin = self.component.plugin
        folder = caches.folder() / self.component.kind / plugin.import_package / self.component.name
        made = SourceContext(open_dataset=open_dataset, cache=folder, records=self.opener.records)
        return self.completed(made)

    def completed(self, context: C) -> C:
        """Return a copy of ``context`` with this component's ``open`` and ``key``."""

        # A function, not a method: copying a config must not copy the plugins with it.
        def open(
            kind: type[Any],
            component: nested.Component[Any] | Mapping[str, Any] | str,
            *,
            key: str | None = None,
        ) -> Chosen[Any]:
            return self._open(kind, component, key)

        return replace(context, open=open, key=self.key)

    def _open(
        self,
        kind: type[Any],
        component: nested.Component[Any] | Mapping[str, Any] | str,
        key: str | None,
    ) -> Chosen[Any]:
        if isinstance(component, nested.Component):
            for (place, section), part in zip(
                nested.components(self.config, self.key), self.parts, strict=True
            ):
                if section == component and key in (None, place):
                    return part
            return self._opened(kind, component.name, component.parameters, key)
        given = {"name": component} if isinstance(component, str) else dict(component)
        return self._opened(kind, given.pop("name", None), given, key)

    def _opened(
        self, kind: type[J], name: object, parameters: Mapping[str, Any], key: str | None
    ) -> Chosen[J]:
        with placed():
            where = self.key if key is None else absolute(key, self.declaration.kind, self.key)
            return self.opener.choose(kind, name, parameters, where, above=(*self.above, self))

    @property
    def _fields(self) -> tuple[str, ...]:
        return () if self.config is None else tuple(type(self.config).model_fields)


def _keys(component: Component) -> frozenset[str]:
    """Return the names of a component's parameters; none if they cannot be found out."""
    try:
        model = model_of(component)
    except UserError:
        return frozenset()
    fields = {} if model is None else model.model_fields
    return frozenset(nested.spelled(name, each) for name, each in fields.items())


def takes_context(code: Callable[..., Any]) -> bool:
    """Return whether a function has a parameter ``context``."""
    return "context" in inspect.signature(code).parameters
