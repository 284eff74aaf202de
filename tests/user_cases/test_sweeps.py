"""Sweeps by Hydra's own launchers and sweepers: a run returns what it measured, or nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

TINY = (
    "tokenizer=bytes",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "training.steps=1",
    "device=cpu",
    "architecture.n_layers=1",
    "architecture.dim=64",
    "metrics=none",
    "checkpoint.enable=false",
)

FAILS = "architecture.n_heads=4,3"
"""The second run of the two cannot be."""

REFUSED = "architecture.n_heads=3 (command line): must divide dim=64"


def _rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_optuna_gets_what_the_runs_measured(atom: Callable, tmp_path: Path) -> None:
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=1")
    result = atom(
        *("train", "-m", *search, "optimizer.lr=interval(1e-4,1e-2)", *TINY),
        *("sweep.objective=validation.more.bits_per_byte", "validation.sets.more=stdlib"),
        *("validation.tokens=64", "run.dir=sweep"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    last = [_rows(tmp_path / "sweep" / number)[-1] for number in "01"]
    measured = [row["validation"]["more"]["bits_per_byte"] for row in last]
    assert len(set(measured)) == 2
    assert found["best_value"] == pytest.approx(min(measured), rel=1e-12)
    assert _ranked(atom, tmp_path) == sorted("01", key=lambda number: measured[int(number)])


@pytest.mark.slow
def test_a_grid_finds_the_highest_value_of_a_callback(atom: Callable, tmp_path: Path) -> None:
    """The largest update is that of the largest rate, of which Optuna knows nothing."""
    search = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid")
    result = atom(
        *("train", "-m", *search, "optimizer.lr=choice(1e-3,1e-2)", *TINY, "callbacks=norms"),
        *("sweep.objective=callbacks.norms.update/lm_head", "sweep.direction=maximize"),
        *("run.dir=sweep", "lr_scheduler.warmup_steps=0"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    last = [_rows(tmp_path / "sweep" / number)[-1] for number in "01"]
    measured = [row["callbacks"]["norms"]["update/lm_head"] for row in last]
    assert {key.lstrip("+"): value for key, value in found["best_params"].items()} == {
        "optimizer.lr": 0.01
    }
    assert found["best_value"] == pytest.approx(max(measured), rel=1e-12)
    best, _ = _ranked(atom, tmp_path)
    assert (
        yaml.safe_load((tmp_path / f"sweep/{best}/run.yaml").read_text())["optimizer"]["lr"] == 0.01
    )


def _ranked(atom: Callable, place: Path) -> list[str]:
    """Return the runs of a sweep, the best first."""
    compared = atom("compare", "sweep", "--json", cwd=place)
    assert compared.returncode == 0, compared.stderr
    return [Path(run["run"]).name for run in json.loads(compared.stdout)["runs"]]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_launcher_of_hydras_tells_a_run_that_fails(
    atom: Callable, tmp_path: Path, launcher: str
) -> None:
    result = atom(
        *("train", "-m", f"hydra/launcher={launcher}", FAILS, *TINY, "run.dir=sweep"),
        cwd=tmp_path,
        LOKY_MAX_CPU_COUNT="1",
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert f"atom: {REFUSED}" in result.stderr
    assert [row["step"] for row in _rows(tmp_path / "sweep" / "0")] == [1]


HOSTILE = [
    # by which launcher, what a stranger's experiment holds, what is said of it
    ("joblib", "optimizer: {name: '${oc.env:SECRET}'}", "a file may not read the environment"),
    ("submitit_local", "optimizer: {name: '${oc.env:SECRET}'}", "may not read the environment"),
    ("joblib", "launcher: {before: [touch mark]}", "launcher.before"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "text", "said"), HOSTILE)
def test_a_worker_of_hydras_composes_under_the_same_guard(
    atom: Callable, tmp_path: Path, launcher: str, text: str, said: str
) -> None:
    experiment = tmp_path / "theirs" / "experiment" / "x.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(f"# @package _global_\n{text}\n")
    work = tmp_path / "work"
    work.mkdir()
    result = atom(
        *("train", "-m", f"hydra/launcher={launcher}", "training.steps=1,2", *TINY),
        *("--config-dir=../theirs", "+experiment=x", "run.dir=sweep"),
        # With one worker joblib takes none.
        *(["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []),
        cwd=work,
        SECRET="Adam-the-secret",
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr
    assert "the-secret" not in result.stdout + result.stderr
    assert not list(work.rglob("mark"))
    assert not list(work.rglob("run.yaml"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["sweep.objective=los"],
            "sweep.objective=los (command line): is no number that is measured",
        ),
        (
            ["sweep.objective=validation.web.loss", "validation.sets.wiki=stdlib"],
            "sweep.objective=validation.web.loss (command line): is no number that is measured; "
            "did you mean validation.wiki.loss",
        ),
        (
            ["-m", "hydra/sweeper=optuna", "optimizer.lr=choice(1e-3,2e-3)", "dry_run=true"],
            "dry_run=true (command line): has no results for hydra/sweeper=optuna to compare",
        ),
        (
            ["-m", "hydra/sweeper=optuna", "architecture.n_heads=choice(3,5)"],
            "architecture.n_heads=",  # no words of Optuna's about trials without results
        ),
    ],
)
def test_what_has_no_result_is_refused(
    forked: Callable, tmp_path: Path, overrides: list[str], words: str
) -> None:
    result = forked("train", *overrides, *TINY, cwd=tmp_path)
    assert result.returncode == 2, result.stdout
    assert f"atom: {words}" in result.stderr  # after a line of Optuna's own
    assert "No trials" not in result.stderr
