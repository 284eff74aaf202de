"""No process holds a whole model as it exports it, or as it loads its share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_process_holds_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import load_memory

    found = load_memory.measure(load_memory.LLAMA, tmp_path)
    exported, loaded = found.shares
    assert exported <= load_memory.LIMIT, f"export took {exported:.0%} of the model"
    assert loaded <= load_memory.LIMIT, f"a rank took {loaded:.0%} of the model beside its share"
    assert loaded > 0.2, "no rank can load a quarter of the model in less"
