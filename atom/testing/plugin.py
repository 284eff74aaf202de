"""The pytest plugin (entry point ``pytest11``); it must cost nothing in sessions that do not use
it.
"""

from __future__ import annotations

import pytest

# Modules with assertions of the kit. pytest rewrites them like tests, so that it shows the values.
pytest.register_assert_rewrite(
    "atom.testing.suites",
    "atom.testing.hugging_face",
    "atom.titan.contracts.comparison",
    "atom.testing.runs",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: starts several ranks, or takes seconds")
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    from atom.testing import applicable

    applicable.leave_out(config, items)
