"""How long a target is fuzzed: a few hundred examples, or for ``ATOM_FUZZ_SECONDS``."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))

_SECONDS = float(os.environ.get("ATOM_FUZZ_SECONDS", 0))
_EXAMPLES = 200
_EXAMPLE_SECONDS = 5
"""More than this for one example is a hang."""
_ROOM = 2**30
"""Memory that the examples of a target may take together."""

Fuzz = Callable[[st.SearchStrategy[Any], Callable[[Any], None]], None]


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """Call a function on examples of a strategy: it must neither raise nor hang nor take memory."""

    def run(examples: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
        begin, done = time.monotonic(), 0

        def one(example: Any) -> None:
            nonlocal done
            done += 1
            # Ends the process, and says where it hung: a library cannot be interrupted.
            faulthandler.dump_traceback_later(20 * _EXAMPLE_SECONDS, exit=True)
            before = time.process_time()
            try:
                check(example)
            finally:
                faulthandler.cancel_dump_traceback_later()
            assert time.process_time() - before < _EXAMPLE_SECONDS, "it takes too long"

        memory = _peak()
        while True:
            settings(
                max_examples=_EXAMPLES,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )(given(examples)(one))()
            if time.monotonic() - begin >= _SECONDS:
                break
        assert _peak() - memory < _ROOM, "it takes too much memory"
        if _SECONDS:
            seconds = round(time.monotonic() - begin)
            print(json.dumps({"target": request.node.name, "seconds": seconds, "examples": done}))

    return run


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
