"""The fit of a scaling law to runs: planted constants, bands, and run folders."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from planted import PLANTED, runs
from scipy.optimize import minimize
from scipy.special import huber, logsumexp

from atom.errors import UserError
from atom.plan.law_fit import CONSTANTS, Fit, Point, fit, groups
from atom.watch import law_points


def test_planted_constants_are_found_exactly() -> None:
    found = fit(runs(0), samples=2)
    for name in CONSTANTS:
        assert getattr(found.law, name) == pytest.approx(getattr(PLANTED, name), rel=1e-6)
    assert found.held_out == pytest.approx(found.largest.loss, rel=1e-6)


def test_planted_constants_are_within_bands_and_extrapolate() -> None:
    found = fit(runs(2e-3), samples=300)
    for name in CONSTANTS:
        low, high = found.band(name)
        assert low < getattr(PLANTED, name) < high
    truth, bands = PLANTED.optimum(1e23), found.optimum_bands(1e23)  # 100 times the largest run
    best = found.optimum(1e23)
    assert best.loss == pytest.approx(truth.loss, rel=0.01)
    for name in ("parameters", "tokens", "loss"):
        low, high = bands[name]
        assert low < getattr(best, name) < high
        assert low < getattr(truth, name) < high
    assert found.error == pytest.approx(2e-3, rel=0.5)
    assert found.held_out == pytest.approx(found.largest.loss, rel=0.01)


def test_an_outlier_hardly_counts() -> None:
    points = runs(5e-4)
    points[7] = Point("spoiled", points[7].parameters, points[7].tokens, points[7].loss * 1.2)
    found = fit(points, samples=2)
    assert found.optimum(1e23).loss == pytest.approx(PLANTED.optimum(1e23).loss, rel=0.01)


def test_scipy_finds_nothing_lower() -> None:
    points = runs(2e-3, seed=1)
    n, d, y = (np.log([getattr(p, x) for p in points]) for x in ("parameters", "tokens", "loss"))

    def objective(theta: Any) -> float:
        e, a, b, alpha, beta = theta
        residual = logsumexp([a - alpha * n, b - beta * d, e + 0 * n], axis=0) - y
        return float(1e6 * huber(1e-3, residual).sum())

    law = fit(points, samples=2).law
    ours = [*np.log([law.E, law.A, law.B]), law.alpha, law.beta]
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    lowest = min(
        minimize(objective, start, method="L-BFGS-B", options=options).fun
        for start in ([0.5, 6, 7, 0.35, 0.35], [0.6, 5, 8, 0.3, 0.4], ours)
    )
    assert objective(ours) <= lowest * (1 + 1e-4)


@pytest.mark.slow
def test_bands_cover_the_truth() -> None:
    truth = PLANTED.optimum(1e23).loss
    covered = 0
    for seed in range(20):
        low, high = fit(runs(2e-3, seed), samples=100).optimum_bands(1e23)["loss"]
        covered += low < truth < high
    assert covered >= 15  # at a true coverage of 0.95, fewer with probability 3e-4


SAME = [Point(f"{n}", 1e7 * 2**n, 2e8 * 2**n, 3.0 - 0.1 * n) for n in range(8)]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (runs(0)[:5], "5 runs cannot determine the law's 5 constants"),
        (SAME, "tokens grow with parameters in the same way in all runs"),
        ([*runs(0)[:8]], "the runs have fewer than 3 numbers of parameters"),
        ([Point(p.name, p.parameters, p.tokens, math.nan) for p in runs(0)], "has loss=nan"),
        (
            [Point(p.name, p.parameters, p.tokens, 8 - p.loss) for p in runs(0)],
            "does not fall with both parameters and tokens",
        ),
    ],
    ids=["too few", "on a line", "two sizes", "nan", "rising"],
)
def test_runs_that_determine_no_law_are_refused(points: list[Point], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fit(points)


def test_the_best_of_alternatives_counts() -> None:
    """Tokens of a run with another batch size are rounded otherwise."""
    better, worse = Point("a", 1e8, 2.01e9, 3.0), Point("b", 1e8, 2e9, 3.1)
    others = [Point("c", 1e8, 2.1e9, 2.9), Point("d", 2e8, 2e9, 2.8)]
    assert groups([worse, *others, better]) == [[better, worse], [others[0]], [others[1]]]


def test_seeds_repeat() -> None:
    def bands(seed: int) -> tuple[float, float]:
        found: Fit = fit(runs(2e-3), samples=50, seed=seed)
        return found.band("alpha")

    assert bands(0) == bands(0) != bands(1)


# ---------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def finished(atom: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of three steps."""
    place = tmp_path_factory.mktemp("finished") / "run"
    out = atom(
        "train", "tokenizer=bytes", "architecture=llama3_tiny", "architecture.dim=64",
        "architecture.n_layers=2", "training.seq_len=64", "training.global_batch_size=4",
        "training.steps=3", "device=cpu", "metrics=none", f"run.dir={place}",
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return place


@pytest.fixture(scope="module")
def planted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Copies of the run with the parameters, tokens and losses of a planted law."""
    place, folders = tmp_path_factory.mktemp("planted"), []
    points = runs(0)[::2]
    last = points[-1]
    for point in [*points, Point("lr_double", last.parameters, last.tokens, last.loss + 0.1)]:
        folder = place / point.name
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoint", "logs"))
        run = (folder / "run.yaml").read_text()
        (count,) = [line for line in run.splitlines() if line.startswith("  parameters: ")]
        mine = f"  parameters: {point.parameters:.0f}"
        (folder / "run.yaml").write_text(run.replace(count, mine))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row["loss"] = point.loss + 3 - row["step"]
            row["tokens_seen"] = round(point.tokens) * row["step"] // rows[-1]["step"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(folder)
    return folders


@pytest.mark.slow
def test_a_run_records_its_parameters(finished: Path) -> None:
    """Embedding and output layer, and two blocks of width 64 with 4 query and 2 key heads."""
    run = yaml.safe_load((finished / "run.yaml").read_text())
    vocab, hidden = run["resolved"]["vocab_size"], 192
    block = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * hidden + 2 * 64
    assert run["resolved"]["parameters"] == 2 * vocab * 64 + 2 * block + 64


@pytest.mark.slow
def test_fit_of_run_folders(forked: Callable, planted: list[Path], tmp_path: Path) -> None:
    places, law = [str(folder) for folder in planted], tmp_path / "law.yaml"
    out = forked("plan", "fit", *places, "--out", str(law), "--budget", "1e23")
    assert out.returncode == 0, out.stderr
    assert "12 runs, training loss; residuals 0.00%" in out.stdout
    assert "has the lowest loss, 2.4069, of 2 runs of its size and tokens" in out.stdout
    told = json.loads(forked("plan", "fit", *places, "--json", "--budget", "1e23").stdout)
    for name in CONSTANTS:
        value = told["constants"][name]["value"]
        assert value == pytest.approx(getattr(PLANTED, name), rel=1e-3)
        assert yaml.safe_load(law.read_text())[name] == value
    assert [run["name"] for run in told["left_out"]] == ["lr_double"]
    (at,) = told["budgets"]
    assert at["loss"] == pytest.approx(PLANTED.optimum(1e23).loss, rel=1e-4)
    used = json.loads(forked("plan", "budget=1e23", f"law={law}", "--json").stdout)
    assert used["law"]["tokens"] == pytest.approx(at["tokens"], rel=1e-6)


def _edited(name: str, line: str, other: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        assert any(line in each for each in lines)
        kept = (other if line in each else each for each in lines)
        (folder / name).write_text("".join(kept))

    return edit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "loss", "said"),
    [
        (_edited("events.jsonl", '"finished"', ""), None, "is interrupted; valid: finished runs"),
        (
            _edited("run.yaml", "  parameters: ", ""),
            None,
            "does not record its number of parameter",
        ),
        (_edited("run.yaml", "pad_to: 64", "  pad_to: 32\n"), None, "has another tokenizer than"),
        (lambda _: None, "code", "has no validation set code; valid: loss"),
    ],
    ids=["unfinished", "an earlier ATOM's", "another tokenizer", "no such set"],
)
def test_runs_that_cannot_be_compared_are_refused(
    planted: list[Path], tmp_path: Path, spoil: Any, loss: str | None, said: str
) -> None:
    shutil.copytree(planted[0], tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(UserError, match=said):
        law_points.points([planted[1], tmp_path / "run"], loss)
