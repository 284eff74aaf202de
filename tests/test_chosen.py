"""Numbers of metrics.jsonl that a user chooses, in the line of a step and in ``atom compare``."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import SECTIONS
from screens import Piped, row

from atom.cli import main
from atom.recipe.run import parse
from atom.run_dir import chosen
from atom.run_dir.metrics import StepMetrics
from atom.watch import step_text

NORMS = {"gradient/layers.0": 0.5, "gradient/layers.10": 2.0, "weight/layers.0": 7.0}


def measured(step: int, **values: float) -> StepMetrics:
    return dataclasses.replace(row(step), callbacks={"norms": NORMS | values}, data_seconds=0.25)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("loss", ("loss", 9.9)),
        ("mfu", None),
        ("data_seconds", ("data_seconds", 0.25)),
        ("validation.web.loss", None),
        ("callbacks.norms.gradient/layers.0", ("callbacks.norms.gradient/layers.0", 0.5)),
        ("callbacks.norms.gradient/*", ("callbacks.norms.gradient/layers.10", 2.0)),
        ("callbacks.norms.*/layers.0", ("callbacks.norms.weight/layers.0", 7.0)),
        ("callbacks.norms.gradient/layers.?", None),
        ("callbacks.experts.dead/*", None),
    ],
)
def test_a_number_is_found_by_its_name(name: str, found: tuple[str, float] | None) -> None:
    assert chosen.find(measured(1), name) == found
    assert chosen.value(measured(1), name) == (None if found is None else found[1])


def test_what_is_not_finite_is_the_highest() -> None:
    lost = measured(1, **{"gradient/layers.3": math.nan})
    name, value = chosen.find(lost, "callbacks.norms.gradient/*") or ("", 0.0)
    assert name == "callbacks.norms.gradient/layers.3"
    assert math.isnan(value)


def test_chosen_numbers_are_in_the_line_of_a_step() -> None:
    piped = Piped()
    piped.screen.choose(["callbacks.norms.gradient/*", "data_seconds", "callbacks.norms.lost/*"])
    piped.screen.step(row(1))
    assert "norms" not in piped.text, "a step that is not measured"
    piped.screen.step(measured(2))
    piped.screen.step(measured(3))
    note, *lines = piped.text.splitlines()[1:]
    assert note.startswith(
        "metrics.show: callbacks.norms.lost/* is not among the values of step 2; "
    )
    assert len(lines) == 2, "it is told once"
    for line in lines:
        assert "1.2 GiB  norms.gradient/layers.10 2  data_seconds 0.25" in line


def test_chosen_numbers_have_columns_on_a_terminal() -> None:
    found = step_text.columns(measured(1), 10, 100, ["callbacks.norms.gradient/*"])
    assert found[-1].head == "norms.gradient/*"
    assert found[-1].show(measured(1)) == "2"
    assert found[-1].show(row(1)) == ""
    narrow = [each.head for each in step_text.columns(measured(1), 10, 50, ["data_seconds"])]
    assert narrow == ["step", "loss", "tokens/s", "data_seconds"]


MISTAKES = {
    "metrics.show=[los]": "metrics.show=[los] (command line): los is no number that is "
    "measured; did you mean loss",
    "metrics.show=[callbacks.experts.dead/*]": "callbacks.experts.dead/* is no number",
    "metrics.show=[callbacks.norms]": "did you mean callbacks.norms.VALUE",
    "metrics.show=loss": "metrics.show=loss (command line): must be a list",
    "sweep.objective=callbacks.norm.gradient/layers.0": "sweep.objective=callbacks.norm.gradient/"
    "layers.0 (command line): is no number that is measured",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_what_is_not_measured_cannot_be_chosen(
    override: str, forked: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    place = tmp_path / "run"
    result = forked("train", "callbacks=norms", f"run.dir={place}", override, cwd=tmp_path)
    assert result.returncode == 2
    assert MISTAKES[override] in result.stderr
    assert not place.exists()


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two runs that have measured norms; the first shows one of them."""
    places = []
    for name, factor in (("a", 1.0), ("b", 10.0)):
        place = tmp_path / name
        (place / "logs").mkdir(parents=True)
        parse(SECTIONS).write(place / "run.yaml")
        rows = [measured(1), measured(2, **{"gradient/layers.0": 3 * factor}), row(3)]
        (place / "metrics.jsonl").write_text("".join(f"{one.to_json()}\n" for one in rows))
        places.append(place)
    shows: dict[str, Any] = yaml.safe_load((places[0] / "run.yaml").read_text())
    shows["metrics"]["show"] = ["callbacks.norms.weight/layers.0"]
    (places[0] / "run.yaml").write_text(yaml.safe_dump(shows))
    return places


def test_chosen_numbers_are_compared(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", *map(str, runs), "--show", "callbacks.norms.gradient/*"]
    assert main([*command, "--out", str(tmp_path / "curves.svg")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["norms.gradient/*", "3", "30"] in lines
    assert ["norms.weight/layers.0", "7", "7"] in lines, "what a run shows"
    drawn = (tmp_path / "curves.svg").read_text()
    assert "norms.gradient/*" in drawn
    assert "norms.weight/layers.0" in drawn
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["runs"]
    assert [run["norms.gradient/*"] for run in told] == [3.0, 30.0]


@pytest.mark.parametrize(
    "name", ["callbacks.norms.gradeint/layers.0", "los", "a.b.c", "validation.web.loss"]
)
def test_what_no_run_has_logged_is_not_compared(
    name: str, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, runs), "--show", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"atom: --show {name}: no run has logged it; ")
    if name.startswith("callbacks"):
        assert "did you mean callbacks.norms.gradient/layers.0" in said
