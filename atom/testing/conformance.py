"""Turn the name of a component into a class of tests that pytest collects."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from atom.errors import UserError
from atom.plugin import KINDS

if TYPE_CHECKING:  # pytest imports this module in every session, but few sessions use it
    from pydantic import BaseModel

    from atom.registry.host import Component, Host


class Suite:
    """The base of the suites of all kinds. pytest creates an instance for each test.

    Attributes:
        name: name of the component under test, ``NAME`` or ``PACKAGE:NAME``.
        parameters: parameters of the component, as in a run.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    parameters: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def host(cls) -> Host:
        """The installed plugins."""
        from atom.registry.host import Host

        return Host.load()

    @pytest.fixture(scope="class")
    @classmethod
    def component(cls, host: Host) -> Component:
        """The component under test; the test fails with the reason if its plugin is broken."""
        try:
            return host.find(cls.kind, cls.name)
        except UserError as error:
            pytest.fail(error.sentence(), pytrace=False)

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls, component: Component) -> BaseModel | None:
        """The component's parameters, validated as in a run; None if it has none."""
        from atom.registry.configured import configured
        from atom.testing.opened import opened

        try:
            config = configured(component, cls.parameters)
            opened(component, config)
            return config
        except UserError as error:
            pytest.fail(error.sentence(), pytrace=False)


def conformance(component: str, **parameters: Any) -> type[Any]:
    """Return the suite of a component's kind; assign it to a name that starts with ``Test``.

    Args:
        component: ``KIND:NAME``, such as ``architecture:my_net``; a kernel is
            ``kernel:OPERATION/NAME``.
        parameters: parameters of the component, as in its config group; make an architecture tiny.

    Raises:
        ValueError: the kind is unknown.
    """
    kind, _, name = component.partition(":")
    kinds = [declaration.kind for declaration in KINDS]
    if kind not in kinds or not name:
        raise ValueError(f"{component!r} is not KIND:NAME with a kind of {', '.join(kinds)}")
    suite = importlib.import_module(f"atom.testing.suites.{kind}").CONFORMANCE
    return type(suite.__name__, (suite,), {"name": name, "parameters": parameters})
