"""``atom recipe``: what is refused before anything runs, what runs again, and what goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from atom.run_dir import metrics
from atom.stages import state

Recipe = dict[str, Any]

RUN = {
    "architecture": "llama3_tiny", "architecture.dim": 32, "architecture.n_layers": 2,
    "tokenizer": "bytes", "dataset": "local", "dataset.path": "${texts}", "device": "cpu",
    "training.seq_len": 32, "training.global_batch_size": 2, "training.steps": "${steps}",
    "checkpoint.interval": 20, "metrics": "none",
}  # fmt: skip


def toy(folder: Path, change: Callable[[Recipe], object] = lambda _: None) -> Path:
    """Write a recipe of four stages, and the text they read."""
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{n} words " * 40}) + "\n" for n in range(40)))
    content = {
        "summary": "toy",
        "variables": {"steps": 4, "texts": str(texts), "scale": "one"},
        "scales": {"one": {"lr": 1e-3}, "two": {"lr": 2e-3}},
        "stages": {
            "base": {"command": "train", "overrides": RUN | {"optimizer.lr": "${lr}"}},
            "more": {"command": "train", "from": "base@best", "overrides": dict(RUN)},
            "mean": {"command": "average", "from": ["base", "more"]},
            "hf": {"command": "export", "from": "mean"},
        },
    }
    change(content)
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def at(*keys: str, value: Any) -> Callable[[Recipe], None]:
    """Return a change that sets a value of the recipe."""

    def change(recipe: Recipe) -> None:
        for key in keys[:-1]:
            recipe = recipe[key]
        recipe[keys[-1]] = value

    return change


MISTAKES = {
    "unknown command": (at("stages", "mean", "command", value="avrage"), (), "did you mean averag"),
    "unknown key": (at("stages", "mean", "form", value="base"), (), "stages.mean.form (toy.yaml)"),
    "unknown source": (at("stages", "mean", "from", value="bse"), (), "did you mean base?"),
    "source without weights": (at("stages", "mean", "from", value="hf"), (), "makes a folder"),
    "no source": (at("stages", "hf", "from", value=[]), (), "from=[] (toy.yaml): valid: 1 stage"),
    "two sources": (at("stages", "hf", "from", value=["base", "more"]), (), "valid: 1 stage"),
    "checkpoint of an export": (
        lambda r: r["stages"].update(e={"command": "eval", "from": "hf@2"}),
        (), "has no checkpoints",
    ),
    "round": (at("stages", "base", "from", value="mean"), (), "need each other"),
    "variable": (at("stages", "hf", "options", value={"dtype": "${dtpe}"}), (), "is no variable"),
    "variables that go round": (at("variables", "texts", value="${texts}"), (), "refers to itself"),
    "scale": (lambda _: None, ("scale=three",), "scale=three (command line): is no scale"),
    "override": (lambda _: None, ("bse.optimizer.lr=1",), "is no variable and no stage"),
    "removal": (lambda _: None, ("~base.loss",), "removes nothing"),
    "folder of a stage": (lambda _: None, ("base.run.dir=x",), "is set by the recipe"),
    "an argument": (at("stages", "hf", "options", value={"dtype": "int8"}), (), "stage hf: atom"),
    "another architecture": (
        lambda _: None, ("more.architecture=qwen3_tiny",), "takes the weights of base, which has",
    ),
    "trust": (
        at("stages", "base", "overrides", value={"plugins.allow": ["x"]}), (), "is the user's",
    ),
    "a launcher's commands": (
        at("stages", "base", "overrides", value={"launcher.setup": ["rm -rf /"]}), (),
        "is the user's: no file of a recipe sets it; valid: atom recipe run NAME base.launcher",
    ),
    "hydra": (
        at("stages", "base", "overrides", value={"hydra/launcher": "x"}), (), "is no key",
    ),
    "a resolver": (
        at("stages", "base", "overrides", value={"run.name": "${oc.env:HOME}"}), (), "is no name",
    ),
    "no stages": (at("stages", value={}), (), "stages={} (toy.yaml)"),
    "no recipe": (lambda r: r.clear(), (), "stages (toy.yaml): is required"),
    "--only": (lambda _: None, ("--only=hf",), "stage hf needs mean, which is waits"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_before_anything_runs(
    name: str, forked: Callable, tmp_path: Path
) -> None:
    change, arguments, words = MISTAKES[name]
    toy(tmp_path, change)
    done = forked("recipe", "run", "toy.yaml", "--dir=out", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_composed(forked: Callable, tmp_path: Path) -> None:
    toy(tmp_path)
    words = ("scale=two", "base.training.steps=9", "~more.metrics", "launcher=slurm")
    done = forked("recipe", "run", "toy.yaml", "--cfg", *words, cwd=tmp_path)
    stages = yaml.safe_load(done.stdout)["stages"]
    assert list(stages) == ["base", "more", "mean", "hf"]
    base, more = stages["base"]["overrides"], stages["more"]["overrides"]
    assert (base["optimizer.lr"], base["training.steps"], more["training.steps"]) == (2e-3, 9, 4)
    assert "metrics" not in more
    assert base["launcher"] == more["launcher"] == "slurm"
    done = forked("recipe", "graph", "toy.yaml", cwd=tmp_path)
    assert "base --> mean" in done.stdout
    assert "base --> hf" not in done.stdout


def test_recipes_of_atom_are_listed(forked: Callable, tmp_path: Path) -> None:
    assert "assistant" in forked("recipe", "list", cwd=tmp_path).stdout
    done = forked("recipe", "run", "asistant", cwd=tmp_path)
    assert (done.returncode, "did you mean assistant?" in done.stderr) == (2, True)
    done = forked("train", "+recipe=assistant", cwd=tmp_path)
    assert (done.returncode, "atom recipe run assistant" in done.stderr) == (2, True)


# ---------------------------------------------------------------------------- real stages


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    toy(folder)
    return folder


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=place, capture_output=True, text=True, check=False
    )


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "atom", "recipe", "run", "toy.yaml", "--dir=out", *arguments]


def ended(place: Path) -> dict[str, tuple[str, float]]:
    """Return the state of each stage, and when it began."""
    records = {name: state.read(place / "out", name) for name in ("base", "more", "mean", "hf")}
    return {name: (record.state, record.began) for name, record in records.items() if record}


@pytest.mark.slow
def test_a_stage_that_is_stopped_goes_on(place: Path) -> None:
    """A dry run of each stage first; a signal in the first stage; the rest in a second call."""
    log = (place / "log.txt").open("w+")
    job = subprocess.Popen(
        command("base.training.steps=60"), cwd=place, stdout=subprocess.PIPE, text=True, stderr=log
    )
    assert job.stdout is not None
    seen = [next(line for line in job.stdout if "step  3/60" in line)]
    job.send_signal(signal.SIGTERM)
    seen += job.stdout.readlines()
    assert job.wait() == 75, seen
    assert ended(place).keys() == {"base"}
    assert ended(place)["base"][0] == "stopped"
    at_stop = metrics.read(place / "out/base" / metrics.FILE_NAME)[-1].step
    done = run(place, "base.training.steps=60", "--no-check", "--only=base", "--jobs=2")
    assert done.returncode == 0, done.stderr
    steps = [row.step for row in metrics.read(place / "out/base" / metrics.FILE_NAME)]
    assert steps == list(range(1, 61))
    assert 2 < at_stop < 60
    done = run(place, "base.training.steps=60", "--no-check", "--jobs=2")
    assert done.returncode == 0, done.stderr
    assert {how for how, _ in ended(place).values()} == {"finished"}
    assert (place / "out/hf/model.safetensors").exists()


@pytest.mark.slow
def test_only_what_has_changed_runs_again(place: Path) -> None:
    before = ended(place)
    same = run(place, "base.training.steps=60")
    assert (same.returncode, "nothing has changed" in same.stdout) == (0, True)
    done = run(place, "base.training.steps=60", "more.optimizer.lr=1e-4", "--no-check")
    assert done.returncode == 0, done.stderr
    assert "more: atom train" in done.stdout
    assert "optimizer.lr: nothing → " in done.stdout
    after = ended(place)
    assert [name for name in before if before[name] != after[name]] == ["more", "mean", "hf"]
    assert (place / "out/outdated/more-1/run.yaml").exists()


@pytest.mark.slow
def test_a_stage_that_fails_stops_those_that_need_it(place: Path) -> None:
    """Two mistakes are found by dry runs; a fault that no check can see stops what needs it."""
    found = run(place, "base.optimizer.lr=-1", "more.optimizer.name=nosuch")
    assert found.returncode == 2
    assert [line.split(":")[1].strip() for line in found.stderr.splitlines()] == [
        "stage base", "stage more",
    ]  # fmt: skip
    assert "base.optimizer.lr=-1 (command line): must be greater" in found.stderr
    done = run(place, "base.training.steps=60", "more.optimizer.lr=-1", "--no-check")
    assert done.returncode == 1
    assert "stage more failed: optimizer.lr=-1 (command line): must be greater" in done.stderr
    assert done.stderr.rstrip().endswith("not run: mean, hf")
    assert ended(place)["base"][0] == "finished"
    toy(place, at("stages", "more", "from", value="base@3"))
    done = run(place, "base.training.steps=60")
    assert done.returncode == 2
    assert "from=base@3: has no such checkpoint; valid: " in done.stderr


@pytest.mark.slow
def test_what_a_recipe_will_take(place: Path) -> None:
    toy(place)
    words = [*command("device=h100", "plan.price_gpu_hour=2"), "--json"]
    words[words.index("run")] = "plan"
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=True)
    plans = json.loads(done.stdout)
    assert list(plans) == ["base", "more"]
    assert plans["base"]["dollars"] == pytest.approx(plans["base"]["gpu_hours"] * 2)
