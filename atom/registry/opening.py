"""Open a component by its name for another one, under the run's trust lists. This imports no torch.

An opened component speaks of its own keys (``dataset.path``); :func:`renamed` makes of them the
keys that the user wrote (``dataset.sources.a.path``).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from atom.errors import UserError
from atom.io import caches
from atom.plugin import Document, DocumentSource, SourceContext
from atom.registry.host import Component, Host, resolve
from atom.registry.select import configured

_DEEPEST = 16
"""Components that open each other; more is a circle."""


class Opener:
    """Opens components of a host.

    Attributes:
        packages: the packages whose components have been opened by another one.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.packages: set[str] = set()

    def source(
        self, component: Component, config: BaseModel | None, *, depth: int = 0
    ) -> DocumentSource:
        """Return the source of a dataset, ``depth`` datasets below the one that the run names."""
        make = resolve(component.declaration.source, component)  # type: ignore[attr-defined]
        made: DocumentSource
        if takes_context(make):
            made = make(config, context=self.context(component, depth=depth))
        else:
            made = make(config)
        return made

    def context(self, component: Component, *, depth: int = 0) -> SourceContext:
        """Return what a dataset opens others with."""

        # A function and no method: a config that is copied does not copy the plugins with it.
        def open_dataset(name: str, parameters: Mapping[str, Any], key: str) -> DocumentSource:
            if depth >= _DEEPEST:
                raise UserError(f"datasets open each other more than {_DEEPEST} deep", key=key)
            with renamed("dataset", key):
                opened, config = self._find("dataset", name, parameters)
            fields = () if config is None else tuple(type(config).model_fields)
            with renamed("dataset", key, fields):
                source = self.source(opened, config, depth=depth + 1)
            return _Opened(source, key, fields)

        folder = caches.folder() / component.kind / component.plugin.import_package / component.name
        return SourceContext(open_dataset=open_dataset, cache=folder)

    def _find(
        self, kind: str, name: object, parameters: Mapping[str, Any]
    ) -> tuple[Component, BaseModel | None]:
        """Return a component of any kind, with its parameters validated.

        Raises:
            UserError: with the keys of a run that names it itself.
        """
        if not isinstance(name, str):
            raise UserError("must be the name of a component", key=f"{kind}.name", value=name)
        component = self._host.find(kind, name, key=f"{kind}.name")
        self.packages.add(component.plugin.package)
        return component, configured(component, dict(parameters))


def takes_context(make: Callable[..., Any]) -> bool:
    """Return whether a function has a parameter ``context``."""
    return "context" in inspect.signature(make).parameters


class _Opened:
    """An opened dataset: a :class:`DocumentSource` whose mistakes name the user's keys."""

    def __init__(self, source: DocumentSource, key: str, fields: tuple[str, ...]) -> None:
        self._source = source
        self._key = key
        self._fields = fields

    def check(self) -> str:
        with renamed("dataset", self._key, self._fields):
            return self._source.check()

    def lane(
        self, lane: int, lanes: int, *, seed: int, epoch: int, start: int = 0
    ) -> Iterator[Document]:
        with renamed("dataset", self._key, self._fields):
            yield from self._source.lane(lane, lanes, seed=seed, epoch=epoch, start=start)

    def __getattr__(self, name: str) -> Any:
        # What else a source offers. Not what copying asks for, which finds this object empty.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)


@contextmanager
def renamed(kind: str, key: str, fields: Iterable[str] = ()) -> Iterator[None]:
    """Let a :class:`UserError` of a component name the user's keys, in its sentence too.

    Args:
        kind: what the component calls its section.
        key: what the user calls it.
        fields: the component's parameters, as a sentence may name them (``dataset.format``).
    """
    try:
        yield
    except UserError as error:
        if error.key is not None and re.match(rf"{kind}(\.|$)", error.key):
            error.key = key + error.key.removeprefix(kind)
        if names := "|".join(map(re.escape, fields)):
            # Not in the name of a file, such as data/dataset.path/x.
            pattern = rf"(?<![\w./\\-]){kind}(?=\.(?:{names})\b(?![/\\-]))"
            error.problem = re.sub(pattern, lambda _: key, error.problem)
            if error.valid is not None:
                error.valid = re.sub(pattern, lambda _: key, error.valid)
        raise
