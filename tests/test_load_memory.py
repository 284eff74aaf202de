"""No process holds a whole model as it exports or averages it, or as it loads its share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
from pathlib import Path

import load_memory

found = load_memory.measure(load_memory.LLAMA, Path(sys.argv[1]))
print(json.dumps([load_memory.LIMIT, *found.shares]))
"""


@pytest.mark.slow
def test_no_process_holds_the_model(measured: Callable, tmp_path: Path) -> None:
    limit, exported, averaged, loaded = measured(PROGRAM, str(tmp_path))
    assert exported <= limit, f"export took {exported:.0%} of the model"
    assert averaged <= limit, f"the average took {averaged:.0%} of the model"
    assert loaded <= limit, f"a rank took {loaded:.0%} of the model beside its share"
    assert loaded > 0.2, "no rank can load a quarter of the model in less"
