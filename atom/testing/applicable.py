"""Leave out the tests of a suite that do not apply to its component.

They are deselected as pytest collects, after ``-m`` and ``-k``. A test that cannot run here,
because a device or a package is missing, is skipped with the reason instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pytest

Test = TypeVar("Test", bound=Callable[..., None])
Condition = Callable[..., bool]
"""Takes the suite, its component, and the test's parameters by name."""

_CONDITIONS = "atom_conditions"


def where(condition: Condition) -> Callable[[Test], Test]:
    """Collect a test of a suite only for components that fulfil a condition."""

    def mark(test: Test) -> Test:
        setattr(test, _CONDITIONS, (*getattr(test, _CONDITIONS, ()), condition))
        return test

    return mark


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that do not apply to their component."""
    left_out = set(_left_out(items))
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def _left_out(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    host = None
    for item in items:
        conditions = getattr(getattr(item, "function", None), _CONDITIONS, ())
        if not conditions:
            continue
        if host is None:
            from atom.registry.host import Host

            host = Host.load()
        suite: Any = getattr(item, "cls", None)
        callspec = getattr(item, "callspec", None)
        parameters: Mapping[str, Any] = callspec.params if callspec is not None else {}
        try:
            component = host.find(suite.kind, suite.name)
            if not all(condition(suite, component, **parameters) for condition in conditions):
                yield item
        except Exception:  # the test itself fails and reports it
            continue
