"""From the name of a component to a class of tests that pytest collects."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from atom.errors import UserError
from atom.host import Component, Host
from atom.plugin import KINDS
from atom.select import configured


class Suite:
    """What the suites of all kinds share. pytest makes an instance for each test.

    Attributes:
        name: of the component under test, ``NAME`` or ``PACKAGE:NAME``.
        parameters: of the component, as a run would set them.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    parameters: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="session")
    def host(self) -> Host:
        return Host.load()

    @pytest.fixture
    def component(self, host: Host) -> Component:
        """The component under test; the test fails with the reason if its plugin is broken."""
        try:
            return host.find(self.kind, self.name)
        except UserError as error:
            pytest.fail(error.sentence(), pytrace=False)

    @pytest.fixture
    def config(self, component: Component) -> BaseModel | None:
        """The component's parameters, validated as a run's are; None if it has none."""
        return configured(component, self.parameters)


def conformance(component: str, **parameters: Any) -> type[Suite]:
    """Return the suite of a component's kind, to be given a name that starts with ``Test``.

    Args:
        component: ``KIND:NAME``, such as ``architecture:my_net``; a kernel is
            ``kernel:OPERATION/NAME``.
        parameters: of the component, as in its config group; an architecture should be made tiny.

    Raises:
        ValueError: there is no such kind.
    """
    kind, _, name = component.partition(":")
    kinds = [declaration.kind for declaration in KINDS]
    if kind not in kinds or not name:
        raise ValueError(f"{component!r} is not KIND:NAME with a kind of {', '.join(kinds)}")
    suite = importlib.import_module(f"atom.testing.suites.{kind}").CONFORMANCE
    return type(suite.__name__, (suite,), {"name": name, "parameters": parameters})
