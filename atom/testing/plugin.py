"""The pytest plugin (entry point ``pytest11``): it must cost nothing where it is not used."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("atom.testing.suites")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: starts several ranks (minutes on two cores)")
