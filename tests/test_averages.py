"""Weights that a callback averages: values, checkpoints, validation, and what reads them."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resumed import TINY
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atom.run_dir import evals, metrics
from atom.titan import saved_model
from atom.titan.saved_model import Checkpoint

State = dict[str, torch.Tensor]

STEPS, START, DECAY = 5, 2, 0.5
SET = "validation.sets.web={name: local, path: texts}"
RUN = (
    *("train", *TINY, "dataset.path=texts", "optimizer.lr=0.01", "lr_scheduler.warmup_steps=0"),
    *("checkpoint.keep_latest_k=9", "checkpoint.async_mode=disabled"),
    *(SET, "validation.interval=1", "validation.tokens=640"),
    *("callbacks=ema", f"callbacks.ema.decay={DECAY}", f"callbacks.ema.start={START}"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averages")
    (folder / "texts").mkdir()
    for number in range(8):
        (folder / f"texts/{number}.txt").write_text(f"text {number} has words " * 30)
    return folder


@pytest.fixture(scope="module")
def said(atom: Callable, place: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        result = atom(*arguments, cwd=place, OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        return str(result.stdout)

    return run


@pytest.fixture(scope="module")
def screen(said: Callable[..., str]) -> str:
    return said(*RUN, f"training.steps={STEPS}", "run.dir=run")


def weights(folder: Path, step: int, average: str | None = None) -> State:
    source = Checkpoint(folder / f"checkpoint/step-{step}", average)
    model = saved_model.on_meta(saved_model.trained(folder).parts.model)
    return {name: source.read(name) for name, _ in model.state_dict().items()}


def difference(a: State, b: State) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def module(state: State) -> nn.Module:
    """Return a module with these parameters."""
    found = nn.Module()
    for name, values in state.items():
        found.register_parameter(name.replace(".", "_"), nn.Parameter(values.clone()))
    return found


# ---------------------------------------------------------------------------- values


@pytest.mark.slow
def test_average_is_torchs(screen: str, place: Path) -> None:
    """Of the weights of every step, to the bit; up to the start it is the weights."""
    assert screen
    run = place / "run"
    oracle = AveragedModel(module(weights(run, START)), multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for step in range(1, STEPS + 1):
        here, found = weights(run, step), weights(run, step, "ema")
        if step <= START:
            assert difference(found, here) == 0.0
        if step >= START:
            oracle.update_parameters(module(here))
            expected = oracle.module.state_dict()
            assert difference({n.replace(".", "_"): v for n, v in found.items()}, expected) == 0.0
    assert difference(weights(run, STEPS), weights(run, STEPS, "ema")) > 1e-3


@pytest.mark.slow
def test_it_is_saved_by_every_layout(screen: str, said: Callable[..., str], place: Path) -> None:
    """Saved on one rank, by FSDP and by a pipeline, and loaded by the next; a checkpoint of weights
    alone has it, too."""
    assert screen
    shutil.copytree(place / "run", place / "moved", ignore=shutil.ignore_patterns("step-[45]"))
    layouts = ("launch.ranks=2", "run.dir=moved")
    said(*RUN, "parallelism=fsdp", *layouts, "training.steps=4")
    last = ("training.steps=5", "checkpoint.last_save_model_only=true")
    said(*RUN, "parallelism=pp", *layouts, *last)
    for step in (4, 5):
        found = difference(
            weights(place / "moved", step, "ema"), weights(place / "run", step, "ema")
        )
        assert found < 1e-4, "AdamW turns rounding of a gradient near zero into steps of its rate"
    both = [
        metrics.by_set(metrics.read(place / name / "metrics.jsonl")) for name in ("run", "moved")
    ]
    for there, here in zip(*(dict(sets["web/ema"]).items() for sets in both), strict=True):
        assert there[0] == here[0]
        assert there[1].loss == pytest.approx(here[1].loss, abs=2e-4)


# ---------------------------------------------------------------------------- commands


@pytest.mark.slow
def test_commands_read_it(screen: str, said: Callable[..., str], place: Path) -> None:
    """Validation in training and afterwards, an export, and a run that starts from it agree."""
    rows = metrics.read(place / "run/metrics.jsonl")
    sets = metrics.by_set(rows)
    assert list(sets) == ["web", "web/ema"]
    assert len(sets["web/ema"]) == STEPS
    ours, plain = sets["web/ema"][-1][1], sets["web"][-1][1]
    assert f"web/ema {ours}" in screen
    assert abs(ours.loss - plain.loss) > 1e-3
    assert ours.data == plain.data

    average = ("--average", "ema")
    said("export", "run", "--to", "hf", "--out", "hf", *average)
    assert "the mean of 1 checkpoint," in said("average", "run", "--out", "mean", *average)
    said("export", "mean", "--to", "hf", "--out", "hf-mean")
    one, other = (load_file(place / name / "model.safetensors") for name in ("hf", "hf-mean"))
    assert difference(one, other) == 0.0
    assert difference(weights(place / "mean", STEPS), weights(place / "run", STEPS, "ema")) == 0.0
    assert (
        json.loads((place / "mean/average.json").read_text())["checkpoints"][0]["average"] == "ema"
    )
    for arguments in (("run", *average), ("hf",), ("mean",)):
        found = json.loads(said("validate", *arguments, "--json"))["sets"]["web"]
        assert found["loss"] == pytest.approx(ours.loss, abs=1e-5)
    asked = {"request_type": "loglikelihood", "doc_id": 0, "label": 0, "doc": {}}
    (place / "requests/code/rc").mkdir(parents=True)
    with gzip.open(place / "requests/code/rc/requests.jsonl.gz", "wt") as file:
        for index, text in enumerate((" has words", " zq")):
            request = {"context": "text 1", "continuation": text}
            file.write(json.dumps(asked | {"idx": index, "request": request}) + "\n")
    told = {"task_hash": "abc", "task_config": {"num_shots": 0, "version": 2}}
    (place / "requests/code/rc/config.json").write_text(json.dumps(told))
    task = ("--tasks", "mine:code_rc", "--evaluator", "mine={name: olmes, path: requests}")
    said("eval", "run", *task, *average)
    said("eval", "mean", *task)
    both = [evals.by_name(evals.read(place / name)) for name in ("run", "mean")]
    assert list(both[0]) == [f"{name} (ema)" for name in both[1]]
    for here, there in zip(*(sets.values() for sets in both), strict=True):
        assert here[0].value == there[0].value

    words = ("abc", "--tokens", "4", "--temperature", "0")
    assert said("generate", "run", *words, *average) == said("generate", "hf", *words)
    begun = ("checkpoint.initial_load=mean", "optimizer.lr=1e-30", "training.steps=1")
    said("train", *TINY, "dataset.path=texts", *begun, "run.dir=next")
    assert difference(weights(place / "next", 1), weights(place / "mean", STEPS)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "validate run --average em",
            "atom: run has no averaged weights of a callback em; valid: ema",
        ),
        (
            "export run --to hf --out no --average x",
            "has no averaged weights of a callback x; valid",
        ),
        ("average run --out no --average x", "has no averaged weights of a callback x; valid: ema"),
        ("average run --out no", "valid: --steps 100,200 for one run, several runs, or --average"),
        ("generate hf abc --average ema", "--average ema is for the folder of a run; hf is an"),
    ],
)
def test_an_average_that_is_not_there(
    arguments: str, sentence: str, screen: str, atom: Callable, place: Path
) -> None:
    assert screen
    if arguments.startswith("generate"):
        (place / "hf").mkdir(exist_ok=True)
        shutil.copy(place / "run/run.yaml", place / "hf")
        (place / "hf/config.json").touch()
    result = atom(*arguments.split(), cwd=place)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert sentence in result.stderr
    assert not (place / "no").exists()


# ---------------------------------------------------------------------------- bad input

BAD = {
    "nobody reads it": (
        ["checkpoint.enable=false"],
        "atom: callbacks.ema: averages weights that are neither validated nor saved; valid: "
        "validation.sets, or checkpoint.enable=true",
    ),
    "the last one is lost": (
        ["checkpoint.last_save_model_only=true", "checkpoint.last_save_in_hf=true"],
        "atom: checkpoint.last_save_in_hf=true: saves the last step without the weights that "
        "callbacks.ema averages; valid: false, and `atom export` afterwards",
    ),
    "the best by weights that nothing averages": (
        [
            *(SET, "callbacks=[ema,norms]", "validation.interval=1"),
            *("checkpoint.keep_best=1", "checkpoint.keep_best_of=web/norms"),
        ],
        "atom: checkpoint.keep_best_of=web/norms: callbacks.norms averages no weights; did you",
    ),
    "the best of no callback": (
        [SET, "checkpoint.keep_best=1", "validation.interval=1", "checkpoint.keep_best_of=web/em"],
        "atom: checkpoint.keep_best_of=web/em: there is no such validation set; did you mean "
        "web/ema or web?",
    ),
    "an average twice": (
        ["callbacks=[ema,norms,ema]"],
        "atom: callbacks: names ema twice; a second one has a name of its own, as in",
    ),
    "an average from the end": (
        ["callbacks.ema.start=3", "training.steps=3"],
        "atom: callbacks.ema.start=3: begins to average where the run ends: training.steps=3",
    ),
    "no decay": (["callbacks.ema.decay=1"], "atom: callbacks.ema.decay=1: must be less than 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, forked: Callable, tmp_path: Path) -> None:
    overrides, sentence = BAD[name]
    result = forked("train", "callbacks=ema", "run.dir=run", *overrides, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    said = re.sub(r" \((command line|/[^)]*)\)", "", result.stderr)
    assert said.startswith(sentence), said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_begins_before_the_run_ends(atom: Callable, tmp_path: Path) -> None:
    late = ("training.steps=9", "callbacks=ema", "callbacks.ema.start=9", "run.dir=run")
    result = atom("train", *TINY[:-1], "device=cpu", "dataset=stdlib", *late, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "callbacks.ema.start=9 (command line): begins to average where the run" in result.stderr
    assert not (tmp_path / "run").exists()
