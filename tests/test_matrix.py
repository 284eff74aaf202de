"""The support matrix: cells are what was run, and the page says no more than they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from atom.registry.host import Host
from atom.testing import matrix, runs
from atom.testing.matrix import Cell

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load()


def test_rows_are_the_tiny_options_that_are_installed(host: Host) -> None:
    rows = matrix.architectures(host)
    assert {"llama3_tiny", "olmo2_tiny", "qwen3_tiny_moe"} <= set(rows)
    assert all("tiny" in name for name in rows)
    assert rows["llama3_tiny"]["name"] == "llama3"


def test_columns_are_the_layouts_that_are_installed(host: Host) -> None:
    sizes = {name: matrix.world_size(section) for name, section in matrix.strategies(host).items()}
    assert sizes["single"] == 1
    assert sizes["fsdp"] == sizes["tp"] == 2
    assert sizes["hsdp"] == 4
    assert sizes["4d"] == sizes["5d"] == 16
    assert "auto" not in sizes  # it gives no layout, and sets another section as well


def cell(architecture: str, strategy: str, **known: object) -> Cell:
    return Cell(architecture, strategy, ranks=2, steps=3, date="2026-01-01", **known)  # type: ignore[arg-type]


def test_the_page_shows_cells_as_they_are() -> None:
    cells = [
        cell("a_tiny", "tp", error=1.5e-6, validation=2.5e-7, versions={"torch": "9.9"}),
        cell("c_tiny", "tp", error=1.5e-6, validation=2.5e-7, versions={"torch": "9.9"}),
        cell("c_tiny", "pp", error=1.5e-6, versions={"torch": "9.9"}),
        cell("a_tiny", "ep", reason="this model has no experts", versions={"torch": "9.9"}),
        cell("b_tiny", "tp", error=3e-3, versions={"torch": "9.9"}),
        cell("b_tiny", "ep", reason="rank 1 failed", failed=True, versions={"torch": "9.9"}),
        cell("gone_tiny", "tp", error=1.0, versions={"torch": "1.0"}),
    ]
    page = matrix.page(cells, ["a_tiny", "b_tiny", "c_tiny"], {"tp": 2, "ep": 2, "pp": 2})
    assert "| `a_tiny` | 1.5e-06 | – (1) | not run | 2.5e-07 |" in page
    assert "| `c_tiny` | 1.5e-06 | not run | 1.5e-06 | 2.5e-07 (tp) |" in page
    assert "| `b_tiny` | **3.0e-03** | **failed** (2) | not run | not run |" in page
    assert "1. this model has no experts\n2. rank 1 failed" in page
    assert "Run 2026-01-01 with torch 9.9." in page
    assert "gone_tiny" not in page
    assert [one.wrong for one in cells] == [False, False, False, False, True, True, True]


def test_a_loss_that_is_no_number_is_wrong() -> None:
    assert cell("a_tiny", "tp", error=float("nan")).wrong
    assert cell("a_tiny", "tp", error=0.0, validation=float("nan")).wrong


def test_no_cells_have_been_kept_yet(tmp_path: Path) -> None:
    assert matrix.read(tmp_path / "none.jsonl") == []


def test_the_page_in_the_documentation_is_that_of_the_cells(host: Host) -> None:
    cells = matrix.read(ROOT / matrix.CELLS)
    assert cells
    sizes = {name: matrix.world_size(section) for name, section in matrix.strategies(host).items()}
    assert (ROOT / matrix.PAGE).read_text() == matrix.page(cells, matrix.architectures(host), sizes)
    assert not [one for one in cells if one.wrong or one.incomplete]


@pytest.mark.slow
def test_cells_come_out_as_numbers_or_reasons(tmp_path: Path) -> None:
    arguments = [f"--cells={tmp_path / 'cells.jsonl'}", f"--page={tmp_path / 'matrix.md'}"]
    chosen = ["--architectures=llama3_tiny", "--strategies=[te]p"]
    assert matrix.main([*arguments, *chosen]) == 0
    found = {one.strategy: one for one in matrix.read(tmp_path / "cells.jsonl")}
    assert set(found) == {"tp", "ep"}
    assert found["tp"].error is not None
    assert 0 < found["tp"].error <= runs.TOLERANCE
    assert found["tp"].validation is not None
    assert found["tp"].validation <= runs.TOLERANCE
    assert found["ep"].error is None
    assert "no experts" in found["ep"].reason
    assert f"{found['tp'].error:.1e}" in (tmp_path / "matrix.md").read_text()
    assert matrix.main([*arguments, *chosen, "--missing"]) == 0
    assert {one.strategy: one for one in matrix.read(tmp_path / "cells.jsonl")} == found
