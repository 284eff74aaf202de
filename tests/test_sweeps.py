"""What a sweep has found: ranking, settings that matter, pictures, and values to compare by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from run_folders import SECTIONS

from atom.cli import main
from atom.errors import UserError
from atom.recipe.run import parse
from atom.run_dir import events
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.validated import SetResult
from atom.watch.importance import importance

HOSTILE = "<b>\x1b[31m\u202e"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the folder of a run with one row."""

    def folder(
        name: str, loss: float, last: str = events.FINISHED, lr: float = 1e-3, **sections: Any
    ) -> Path:
        place = tmp_path / "sweep" / name
        (place / "logs").mkdir(parents=True)
        optimizer = SECTIONS["optimizer"] | {"lr": lr}
        run = SECTIONS | {"optimizer": optimizer, "training": {"steps": 1, "seq_len": 64}}
        parse(run | sections).write(place / "run.yaml")
        row = StepMetrics(
            **{"step": 1, "loss": loss, "grad_norm": 1.0, "lr": lr, "tokens_seen": 512},
            **{"tokens_per_second": 9.0, "step_seconds": 0.5, "memory_gib": 0.5},
            validation={"web/ema": SetResult(loss=9 - loss, tokens=64)},
            callbacks={"norms": {"weight/layers.0": 2 * loss}},
        )
        (place / "metrics.jsonl").write_text(row.to_json() + "\n")
        events.record(place, events.STARTED, ranks=1, attempt=1)
        if last:
            events.record(place, last, step=1, reason=HOSTILE, restart=False)
        return place

    return folder


def grid(write: Write) -> list[tuple[float, int, float]]:
    """Write a grid of eight runs; return (lr, layers, loss). The rate matters most."""
    found = []
    for number in range(8):
        lr, layers = (1e-3, 1e-2)[number % 2], (2, 4)[number // 2 % 2]
        loss = 3 - 50 * lr + 0.05 * layers + 0.04 * (number // 4)
        architecture = SECTIONS["architecture"] | {"n_layers": layers}
        write(f"{number}", loss, lr=lr, architecture=architecture)
        found.append((lr, layers, loss))
    return found


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


# ---------------------------------------------------------------------------- atom compare


def adjusted(groups: list[Any], results: list[float]) -> float:
    """Return the adjusted R² of a least-squares fit of a mean for each group."""
    names = sorted(set(groups))
    columns = np.array([[float(group == name) for name in names] for group in groups])
    fitted = columns @ np.linalg.lstsq(columns, np.array(results), rcond=None)[0]
    left, total = np.sum((results - fitted) ** 2), np.sum((results - np.mean(results)) ** 2)
    runs, free = len(results), len(results) - len(names)
    return float(1 - (left / free) / (total / (runs - 1)))


def test_runs_are_ranked_and_settings_explained(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = grid(write)
    shown = said(capsys, "compare", tmp_path / "sweep", "--out", tmp_path / "a.svg")
    lines = shown.splitlines()
    assert lines[0].endswith("sweep: 8 runs by loss, the lowest first")
    head, *table = (line.split() for line in lines[2:11])
    assert head == ["run", "loss", "architecture.n_layers", "optimizer.lr", "state", "step"]
    order = sorted(range(8), key=lambda number: runs[number][2])
    assert [row[:2] for row in table] == [[f"{n}", f"{run}"] for n, run in enumerate(order, 1)]
    assert table[0] == ["1", "1", "2.6", "2", "0.01", "finished", "1/1"]
    results = [loss for *_, loss in runs]
    shares = [adjusted(list(setting), results) for setting in list(zip(*runs, strict=True))[:2]]
    found = json.loads(said(capsys, "compare", tmp_path / "sweep", "--json"))
    told = {one["setting"]: one for one in found["settings"]}
    assert list(told) == ["optimizer.lr", "architecture.n_layers"], "the most important first"
    assert told["optimizer.lr"]["share"] == pytest.approx(shares[0], abs=1e-12)
    assert told["architecture.n_layers"]["share"] == pytest.approx(max(shares[1], 0), abs=1e-12)
    best = [loss for lr, _, loss in runs if lr == 1e-2]
    assert told["optimizer.lr"]["best"] == "0.01"
    assert told["optimizer.lr"]["mean"] == pytest.approx(sum(best) / 4)
    assert "share: of the variance of loss, what the setting explains alone" in shown
    assert "are few" not in shown
    picture = ElementTree.parse(tmp_path / "a.svg")
    texts = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"optimizer.lr", "loss over optimizer.lr", f"{shares[0]:.0%}"} <= texts
    dots = list(picture.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(dots) == 16
    assert sum(dot.get("class") == "best" for dot in dots) == 2


def test_runs_without_a_result_are_told(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("0", 2.5)
    write("1", 2.0, last=events.FAILED, lr=1.0)
    write("2", math.nan, lr=0.1)
    write("10", 2.4, lr=0.01)
    shown = said(capsys, "compare", tmp_path / "sweep")
    rows = [line.split()[:3] for line in shown.splitlines()[3:7]]
    assert rows == [["1", "10", "2.4"], ["2", "0", "2.5"], ["–", "1", "2"], ["–", "2", "nan"]]
    assert "run 1 is not ranked: failed (" in shown
    assert "run 2 is not ranked: it is not finite" in shown
    assert "2 runs are few: shares may be chance." in shown
    assert "\x1b" not in shown.replace("\x1b[2m", "")
    page = Path(said(capsys, "report", tmp_path / "sweep").strip()).read_text()
    assert "Settings that matter" in page
    assert "run 1 is not ranked" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ((), "012"),
        (("--direction", "maximize"), "210"),
        (("--objective", "validation.web/ema.loss"), "210"),
        (("--objective", "callbacks.norms.weight/layers.0", "--direction", "maximize"), "210"),
    ],
)
def test_any_value_ranks(
    options: tuple[str, ...],
    order: str,
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(3):
        write(f"{number}", 2.0 + number, lr=10.0**-number)
    found = json.loads(said(capsys, "compare", tmp_path / "sweep", *options, "--json"))
    assert "".join(run["run"][-1] for run in found["runs"]) == order


def test_an_evaluation_ranks_by_what_is_better(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"step": 1, "evaluator": "olmes", "task": "arc", "metric": "acc", "samples": 9}
    texts = dict.fromkeys(("time", "asked", "package", "prompts", "weights", "dtype", "atom"), "x")
    for number in range(3):
        line = common | texts | {"max_length": 64, "higher_is_better": True, "value": number / 3}
        place = write(f"{number}", 2.0, lr=10.0**-number)
        (place / "evals.jsonl").write_text(json.dumps(line) + "\n")
    shown = said(capsys, "compare", tmp_path / "sweep", "--objective", "evaluation.arc.acc")
    assert "3 runs by evaluation.arc.acc, the highest first" in shown
    assert [line.split()[1] for line in shown.splitlines()[3:6]] == ["2", "1", "0"]
    with (place / "evals.jsonl").open("a") as file:
        file.write(json.dumps(line | {"average": "ema", "value": 0.5}) + "\n")
    averaged = said(capsys, "compare", tmp_path / "sweep", "--objective", "evaluation.arc/ema.acc")
    assert [row.split()[:3] for row in averaged.splitlines()[3:5]] == [
        ["1", "2", "0.5"],
        ["–", "0", "–"],
    ]
    assert "run 0 is not ranked: it has not measured the objective" in averaged


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["sweep", "--objective", "validation.web/em.loss"],
            "did you mean validation.web/ema.loss",
        ),
        (["sweep/0"], "alone cannot be compared; valid: two or more run folders, or the folder of"),
        (["sweep/0", "sweep/1", "--objective", "loss"], "--objective is for the folder of a sweep"),
        (["sweep", "--show", "lr"], "--show is for two or more run folders; valid: --objective"),
        (["."], "alone cannot be compared"),
        (["sweep", "--out", "no/a.svg"], "no/a.svg cannot be written: No such file or directory"),
        (["nowhere"], "nowhere: there is no such folder; valid: one of a sweep"),
        (["other"], "different values of sweep.objective: grad_norm, loss; valid: --objective"),
    ],
)
def test_what_cannot_be_ranked(
    arguments: list[str],
    sentence: str,
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("0", "loss"), ("1", "loss"), ("../other/0", "loss")):
        write(name, 2.0, sweep={"objective": value})
    write("../other/1", 2.0, sweep={"objective": "grad_norm"})
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([10.0**-n for n in range(16)], (0.99, 1.0)),
        ([8 + n / 2 * (-1) ** n for n in range(16)], (0.8, 1.0)),
        ([(7 * n) % 16 for n in range(16)], (0.0, 0.4)),
        ([f"name{n}" for n in range(16)], None),
        ([n // 8 for n in range(16)], (0.7, 0.8)),
    ],
)
def test_values_that_a_search_has_drawn(values: list[Any], share: Any) -> None:
    """Those in order and those with the best in the middle explain much, those in disorder little;
    names of which each is there once say nothing."""
    found = importance("key", values, [float(n) for n in range(16)], least=True)
    if share is None:
        assert found.share is None
    else:
        assert found.share is not None
        assert share[0] <= found.share <= share[1]


# ---------------------------------------------------------------------------- atom train

BAD = {
    "no such callback": (
        ["callbacks=norms", "sweep.objective=callbacks.nroms.weight/norm"],
        "atom: sweep.objective=callbacks.nroms.weight/norm: is no number that is measured; "
        "valid: callbacks.norms.VALUE, ",
    ),
    "no callback": (
        ["sweep.objective=callbacks.norms.weight/norm"],
        "atom: sweep.objective=callbacks.norms.weight/norm: is no number that is measured; valid: ",
    ),
    "an average that nothing keeps": (
        ["validation.sets.web=stdlib", "sweep.objective=validation.web/ema.loss"],
        "atom: sweep.objective=validation.web/ema.loss: is no number that is measured; did you "
        "mean validation.web.loss or ",
    ),
    "an evaluation": (
        ["sweep.objective=evaluation.arc.acc"],
        "atom: sweep.objective=evaluation.arc.acc: is measured by evaluations, and "
        "evaluation.interval=0; valid: evaluation.interval and evaluation.tasks, or `atom eval`",
    ),
    "no direction": (["sweep.direction=up"], "atom: sweep.direction=up: must be 'minimize' or"),
    "two directions": (
        ["-m", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "optimizer.lr=1e-3"],
        "atom: hydra.sweeper.direction=maximize: is not sweep.direction=minimize, by which `atom "
        "compare` ranks the runs; valid: sweep.direction, and this left out",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, forked: Callable, tmp_path: Path) -> None:
    overrides, sentence = BAD[name]
    result = forked("train", *overrides, "run.dir=run", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert result.stderr.replace(" (command line)", "").startswith(sentence), result.stderr
    assert not (tmp_path / "run").exists()


def test_a_value_that_a_run_has_not_measured_ends_the_sweep(write: Write) -> None:
    from atom.run_dir import objective

    sections = {"callbacks": {"norms": {"name": "norms"}}}
    place = write("0", 2.0, sweep={"objective": "callbacks.norms.weight/layer.0"}, **sections)
    run = parse(SECTIONS | sections | {"sweep": {"objective": "callbacks.norms.weight/layer.0"}})
    with pytest.raises(UserError, match=r"has not measured it; did you mean callbacks\.norms\.we"):
        objective.measured(run, place)


def test_an_evaluation_that_has_failed_has_no_value(write: Write) -> None:
    """It does not end the sweep; another one than the named one does."""
    from atom.run_dir import objective

    place = write("0", 2.0)
    named = {"sweep": {"objective": "evaluation.arc.ac"}}
    tasks = {
        "evaluation": {"interval": 500, "tasks": ["arc"]},
        "checkpoint": {"enable": True, "interval": 500},
    }
    run = parse(SECTIONS | named | tasks)
    objective.check(run, [])
    assert math.isnan(objective.measured(run, place))
    texts = dict.fromkeys(("time", "asked", "package", "prompts", "weights", "dtype", "atom"), "x")
    line = {"step": 1, "evaluator": "olmes", "task": "arc", "metric": "acc", "samples": 9}
    line |= texts | {"max_length": 64, "value": 0.5}
    (place / "evals.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"has not measured it; did you mean evaluation\.arc\.acc"):
        objective.measured(run, place)
    right = parse(SECTIONS | tasks | {"sweep": {"objective": "evaluation.arc.acc"}})
    assert objective.measured(right, place) == 0.5
