"""``{conformance-checks}`` and ``{suite-reference}``: the conformance kit, from its own tests."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atom.plugin import KINDS
from atom.testing.conformance import Suite
from atom.testing.suites.component import ComponentSuite
from atom_docs.nodes import definitions


class ConformanceChecks(SphinxDirective):
    """The tests of a suite; the argument is the kind, or ``every`` for those that all
    kinds share.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        entries = [
            (name, "slow" if _is_slow(test) else "", inspect.getdoc(test) or _words(name))
            for name, test in checks(self.arguments[0])
        ]
        return [definitions(entries)]


class SuiteReference(SphinxDirective):
    """The docstring of each kind's suite."""

    def run(self) -> list[nodes.Node]:
        return _classes(self, [_suite(kind.kind) for kind in KINDS])


class KindReference(SphinxDirective):
    """The docstring of each kind's declaration."""

    def run(self) -> list[nodes.Node]:
        return _classes(self, KINDS)


def _classes(directive: SphinxDirective, owners: Iterable[type]) -> list[nodes.Node]:
    """Return the documentation of classes, without their members."""
    lines: list[str] = []
    for owner in owners:
        module = "atom.plugin" if owner in KINDS else owner.__module__
        lines += [f".. autoclass:: {module}.{owner.__qualname__}", "   :no-members:", ""]
    found = nodes.container()
    directive.state.nested_parse(StringList(lines, "classes"), 0, found)
    return found.children


class Kinds(SphinxDirective):
    """The kinds: how a run selects them, and what they are."""

    def run(self) -> list[nodes.Node]:
        entries = [
            (
                kind.kind,
                f"{kind.section}={'[OPTION,…]' if kind.chosen == 'many' else 'OPTION'}",
                (inspect.getdoc(kind) or "").splitlines()[0],
            )
            for kind in KINDS
        ]
        return [definitions(entries)]


def checks(kind: str) -> Iterator[tuple[str, object]]:
    """Yield the tests of a kind's suite without those that all kinds share, in the file's order."""
    shared = _tests(ComponentSuite)
    suite = ComponentSuite if kind == "every" else _suite(kind)
    names = shared if kind == "every" else _tests(suite) - shared
    for owner in suite.__mro__:
        for name, test in vars(owner).items():
            if name in names:
                names.discard(name)
                yield name, test


def _tests(suite: type[Suite]) -> set[str]:
    return {name for name in dir(suite) if name.startswith("test_")}


def _suite(kind: str) -> type[Suite]:
    suite: type[Suite] = importlib.import_module(f"atom.testing.suites.{kind}").CONFORMANCE
    return suite


def _is_slow(test: object) -> bool:
    return any(mark.name == "slow" for mark in getattr(test, "pytestmark", ()))


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ").capitalize() + "."


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("conformance-checks", ConformanceChecks)
    app.add_directive("suite-reference", SuiteReference)
    app.add_directive("kind-reference", KindReference)
    app.add_directive("kinds", Kinds)
    return {"parallel_read_safe": True}
