"""A resumed run: what it says, what its files show and what it does are one thing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pydantic
import pytest
import torch
import torch.distributed.checkpoint as dcp

from atom.io.process import call
from atom.recipe.run import Run
from atom.run_dir import changes, events, history
from atom.run_dir.prepare import data_changed
from atom.titan.checkpoint.dcp import SafeReader

pytestmark = pytest.mark.slow

TINY = (
    "architecture=llama3_tiny",
    "architecture.n_layers=2",
    "architecture.dim=64",
    "tokenizer=bytes",
    "dataset=local",
    "training.seq_len=64",
    "training.global_batch_size=4",
    "lr_scheduler.warmup_steps=2",
    "lr_scheduler.total_steps=20",
    "checkpoint.interval=1",
    "metrics=none",
    "device=cpu",
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        words = (f"{number} times {other} is {number * other}." for other in range(200))
        (folder / f"{number:02}.txt").write_text("\n".join(words))
    return folder


@pytest.fixture(scope="module")
def train(atom: Callable, texts: Path) -> Callable:
    """Train in a folder, and succeed; return what was said."""

    def run(place: Path, *overrides: str) -> str:
        result = atom("train", *TINY, f"dataset.path={texts}", f"run.dir={place}", *overrides)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


def saved(place: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint."""
    reader = SafeReader(place / f"checkpoint/step-{step}")
    values = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if hasattr(entry, "size")
    }
    dcp.load(values, storage_reader=reader, no_dist=True)
    return values


def rows(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------- the optimizer

# Without a first moment, and with the norm of no gradient too large, the moment that a step leaves
# in a checkpoint is its gradient, to the bit.
GRADIENTS_KEPT = ("optimizer.betas=[0.0,0.95]", "training.max_norm=1e9")


@pytest.fixture(scope="module")
def three_steps(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adamw") / "run"
    train(place, *GRADIENTS_KEPT, "training.steps=3")
    return place


def two_of(place: Path, copy: Path) -> Path:
    """Copy a run of three steps as it was after two."""
    shutil.copytree(place, copy)
    shutil.rmtree(copy / "checkpoint/step-3")
    return copy


def weights_with(state: str, values: dict[str, torch.Tensor]) -> list[str]:
    """Return the weights whose optimizer's state is in a checkpoint, under the weight's name: that
    of queries, keys and values together has another."""
    names = [
        name.removeprefix("optimizer.state.").removesuffix(state)
        for name in values
        if name.endswith(state)
    ]
    found = [name for name in names if name in values]
    assert len(found) >= 8
    return found


def rate(step: int, peak: float, warmup: int, total: int) -> float:
    """Return torchtitan's linear schedule: up over the warmup, down to 0 a step after the last."""
    done = step - 1
    return peak * ((done + 1) / warmup if done < warmup else 1 - (done - warmup) / (total - warmup))


CHANGED = {
    # pytorch/examples#816, AnswerDotAI/ModernBERT#124, NVIDIA/Megatron-LM#7468
    # Every setting of the optimizer, the schedule and the clipping at once, and one after another.
    "all": (
        {"weight_decay": 100.0, "betas": (0.7, 0.8), "eps": 0.01, "lr": 0.002},
        {"warmup": 10, "total": 40},
        0.01,
    ),
    "Adam": ({"name": "Adam", "weight_decay": 100.0}, {}, None),
}


@pytest.mark.parametrize("case", CHANGED)
def test_the_first_step_after_resuming_is_torchs_with_the_new_settings(
    case: str, three_steps: Path, train: Callable, tmp_path: Path
) -> None:
    """Weights after one step equal those of torch's own optimizer with the moments of the
    checkpoint and the settings of the command, in float64, within 1e-6 of the largest."""
    options, schedule, max_norm = CHANGED[case]
    place = two_of(three_steps, tmp_path / "run")
    given = {"betas": (0.0, 0.95)} | options
    overrides = [
        f"optimizer.{key}={list(value) if isinstance(value, tuple) else value}"
        for key, value in given.items()
    ]
    overrides += [f"lr_scheduler.{key}_steps={value}" for key, value in schedule.items()]
    said = train(place, *overrides, f"training.max_norm={max_norm or 1e9}", "training.steps=3")

    before, gradients, after = saved(three_steps, 2), saved(three_steps, 3), saved(place, 3)
    lr = rate(3, options.get("lr", 3e-4), **({"warmup": 2, "total": 20} | schedule))
    assert rows(place)[-1]["lr"] == pytest.approx(lr, rel=1e-9)
    norm = rows(three_steps)[-1]["grad_norm"]
    scale = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    optimizers = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}
    settings = {"eps": 1e-8, "weight_decay": 0.1} | given | {"lr": lr}
    optimizer_class = optimizers[settings.pop("name", "AdamW")]
    for weight in weights_with(".exp_avg", before):
        name = f"optimizer.state.{weight}"
        expected = torch.nn.Parameter(before[weight].double())
        optimizer = optimizer_class([expected], **settings)
        optimizer.state[expected] = {
            "step": before[f"{name}.step"].clone(),
            "exp_avg": before[f"{name}.exp_avg"].double(),
            "exp_avg_sq": before[f"{name}.exp_avg_sq"].double(),
        }
        expected.grad = gradients[f"{name}.exp_avg"].double() * scale
        optimizer.step()
        error = (after[weight].double() - expected.detach()).abs().max()
        assert error <= 1e-6 * expected.detach().abs().max(), weight
    assert "changed, with an effect on the losses:" in said
    assert f"optimizer.{next(iter(options))}: " in said


def test_muon_begins_without_a_state_and_goes_on_with_its_own(
    three_steps: Path, train: Callable, tmp_path: Path
) -> None:
    """Muon begins where AdamW ended, and goes on with other settings; matrices of layers are those
    of ``torch.optim.Muon`` within 1e-5: its iterations are in bfloat16."""
    muon = ("optimizer.name=Muon", "checkpoint.exclude_from_loading=[optimizer]")
    muon += ("training.max_norm=1e9", "training.steps=4")
    whole = two_of(three_steps, tmp_path / "whole")
    train(whole, *muon, "optimizer.momentum=0.0")
    place = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(place / "checkpoint/step-4")
    changed = ("optimizer.momentum=0.5", "optimizer.weight_decay=100", "optimizer.lr=0.002")
    train(place, *muon, *changed)
    before, gradients, after = saved(whole, 3), saved(whole, 4), saved(place, 4)
    for weight in weights_with(".momentum_buffer", before):
        name = f"optimizer.state.{weight}.momentum_buffer"
        expected = torch.nn.Parameter(before[weight].clone())
        optimizer = torch.optim.Muon(
            [expected],
            lr=rate(4, 0.002, 2, 20),
            weight_decay=100,
            momentum=0.5,
            adjust_lr_fn="match_rms_adamw",
        )
        optimizer.state[expected] = {"momentum_buffer": before[name].clone()}
        expected.grad = gradients[name].clone()
        optimizer.step()
        torch.testing.assert_close(after[weight], expected.detach(), atol=1e-5, rtol=1e-5)
    # What is left out is AdamW's state of the first load, and not what Muon's run has saved.
    assert before["optimizer.state.norm.weight.step"] == 1
    assert after["optimizer.state.norm.weight.step"] == 2


# ---------------------------------------------------------------------------- all other settings

HARMLESS = (
    "training.local_batch_size=2",
    "training.gc_freq=7",
    "loss.num_chunks=2",
    "parallelism=fsdp",
    "launch.ranks=2",
    "kernels.optimizer_step=reference",
    "activation_checkpoint.mode=full",
    "checkpoint.interval=2",
    "checkpoint.keep_latest_k=3",
    "checkpoint.async_mode=disabled",
    "faults.replay_check_interval=1",
    "debug.deterministic=true",
    "data.trace=true",
    "launch.max_restarts=0",
    # torchtitan's own dump of its config; ranks failed.
    "debug.print_config=true",
    "debug.save_config_file=torchtitan.json",
)


def test_what_is_called_harmless_changes_no_loss(
    three_steps: Path, train: Callable, tmp_path: Path
) -> None:
    """All at once; the loss of every step within 2e-5, weights within 1e-6 in most elements."""
    place = two_of(three_steps, tmp_path / "run")
    said = train(place, *GRADIENTS_KEPT, "training.steps=3", *HARMLESS)
    assert "with an effect on the losses" not in said
    assert "changed:\n" in said
    for one, other in zip(rows(place), rows(three_steps), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)
        assert one["lr"] == other["lr"]


REFUSED = {
    "seed": (("debug.seed=1",), ("debug.seed=1", "debug.seed=0", "resume.force=true")),
    "another optimizer": (
        ("optimizer.name=Muon",),
        ("optimizer.name=Muon", "state of AdamW", "checkpoint.exclude_from_loading=[optimizer]"),
    ),
    # A checkpoint that is not read would be trained over from the first step.
    "checkpoints off": (
        ("checkpoint.interval=500", "checkpoint.enable=false"),
        ("checkpoint.enable=false", "another run."),
    ),
    "other weights": (
        ("checkpoint.initial_load=elsewhere",),
        ("checkpoint.initial_load=", "no initial weights are loaded", "resume.force=true"),
    ),
    # Ranks that start again after a failure would go back to it every time.
    "another step": (
        ("checkpoint.load_step=1",),
        ("checkpoint.load_step=1 (command line): is always -1", "move newer checkpoints"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    case: str, three_steps: Path, atom: Callable, texts: Path, tmp_path: Path
) -> None:
    overrides, words = REFUSED[case]
    place = two_of(three_steps, tmp_path / "run")
    before = tree(place)
    command = (*TINY, *GRADIENTS_KEPT, f"dataset.path={texts}", f"run.dir={place}")
    result = atom("train", *command, "training.steps=4", *overrides)
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == 1
    for each in words:
        assert each in result.stderr
    assert tree(place) == before


# ---------------------------------------------------------------------------- what is read


@pytest.fixture(scope="module")
def from_lines(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, ``run``, on ``data/a.jsonl`` and ``data/b.jsonl`` beside it."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "data").mkdir()
    for name in "ab":
        lines = (json.dumps({"text": f"Line {n} of {name}. " * 9}) for n in range(50))
        (folder / f"data/{name}.jsonl").write_text("\n".join(lines) + "\n")
    train(folder / "run", f"dataset.path={folder / 'data'}", "training.steps=2")
    return folder


def lose_lines(data: Path) -> Path:
    lines = (data / "b.jsonl").read_text().splitlines(keepends=True)
    (data / "b.jsonl").write_text("".join(lines[10:]))
    return data


def same_size(data: Path) -> Path:
    """Change a letter, and leave size and time of change as they were."""
    path = data / "a.jsonl"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("Line 3 ", "Lime 3 "))
    os.utime(path, ns=times)
    return data


def other_files(data: Path) -> Path:
    (data / "b.jsonl").rename(data / "c.jsonl")
    (data / "d.jsonl").write_text((data / "a.jsonl").read_text())
    return data


# NVIDIA-NeMo/RL#2519
DATA_CHANGED = {
    "lines gone": (lose_lines, "changed: b.jsonl"),
    "one letter": (same_size, "changed: a.jsonl"),
    "files": (other_files, "gone: b.jsonl; new: c.jsonl, d.jsonl"),
}


@pytest.mark.parametrize("case", DATA_CHANGED)
def test_other_data_is_refused(
    case: str, from_lines: Path, forked: Callable, tmp_path: Path
) -> None:
    """Within a second, before torch is needed; nothing is written."""
    change, words = DATA_CHANGED[case]
    shutil.copytree(from_lines, tmp_path / "copy")
    data = change(tmp_path / "copy/data")
    before = tree(tmp_path / "copy/run")
    result = forked(
        "train", *TINY, f"dataset.path={data}", "run.dir=copy/run", "training.steps=3", cwd=tmp_path
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith("atom: dataset=local"), result.stderr
    for each in ("checkpoint of step 2", words, "another run.dir", "resume.force=true"):
        assert each in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert tree(tmp_path / "copy/run") == before


def test_another_tokenizer_under_the_same_name_is_refused(
    from_lines: Path, forked: Callable, tmp_path: Path
) -> None:
    """A checkpoint that was saved with a tokenizer of other files."""
    place = shutil.copytree(from_lines / "run", tmp_path / "run")
    noted = place / "checkpoint/step-2/inputs.json"
    content = json.loads(noted.read_text())
    content["tokenizer"]["digest"] = content["tokenizer"]["digest"][::-1]
    noted.write_text(json.dumps(content, indent=2) + "\n")
    command = (*TINY, f"dataset.path={from_lines / 'data'}", f"run.dir={place}", "training.steps=3")
    result = forked("train", *command)
    assert result.returncode == 2
    assert "tokenizer=bytes" in result.stderr
    assert "does not hold what it held when the checkpoint of step 2" in result.stderr


def test_ranks_are_not_started_again_on_other_data(
    from_lines: Path, start: Callable, tmp_path: Path
) -> None:
    shutil.copytree(from_lines / "data", tmp_path / "data")
    job = start("run", *TINY, "dataset.path=data", "training.steps=5000", "launch.ranks=1")
    job.wait_for_step(2)
    lose_lines(tmp_path / "data")
    os.kill(job.ranks()[0], signal.SIGKILL)
    code, _, said = job.end()
    assert code == 1
    assert "not started again: the dataset has changed under the run (changed: b.jsonl)" in said


def test_a_machine_with_other_data_says_so_and_notes_it(from_lines: Path, tmp_path: Path) -> None:
    """What a node of a cluster asks: there the run may have been submitted elsewhere."""
    place = shutil.copytree(from_lines / "run", tmp_path / "run")
    shutil.copytree(from_lines / "data", tmp_path / "data")
    described = (place / "run.yaml").read_text()
    described = described.replace(str(from_lines / "data"), str(tmp_path / "data"))
    (place / "run.yaml").write_text(described)
    assert call(partial(data_changed, place)) is None
    lose_lines(tmp_path / "data")
    words = "the dataset has changed under the run (changed: b.jsonl)"
    assert call(partial(data_changed, place)) == words
    assert call(partial(data_changed, place, adopt=True)) == words
    assert call(partial(data_changed, place)) is None


def test_content_decides_and_not_its_place_or_time(
    from_lines: Path, train: Callable, tmp_path: Path
) -> None:
    """Data that was moved, renamed and touched goes on, with the losses of data that was not."""
    shutil.copytree(from_lines, tmp_path / "copy")
    train(tmp_path / "copy/run", f"dataset.path={from_lines / 'data'}", "training.steps=4")
    moved = tmp_path / "elsewhere"
    shutil.copytree(from_lines / "data", moved)
    for name, new in (("a.jsonl", "1.jsonl"), ("b.jsonl", "2.jsonl")):
        (moved / name).rename(moved / new).touch()
    shutil.copytree(from_lines / "run", tmp_path / "run")
    said = train(tmp_path / "run", f"dataset.path={moved}", "training.steps=4")
    assert "with an effect" not in said
    assert f"dataset.path: {from_lines / 'data'} → {moved}" in said
    losses = [
        [row["loss"] for row in rows(each)] for each in (tmp_path / "copy/run", tmp_path / "run")
    ]
    assert losses[0] == losses[1]


def test_other_data_by_force_and_a_checkpoint_that_does_not_tell(
    from_lines: Path, train: Callable, tmp_path: Path
) -> None:
    shutil.copytree(from_lines, tmp_path / "copy")
    data, place = lose_lines(tmp_path / "copy/data"), tmp_path / "copy/run"
    said = train(place, f"dataset.path={data}", "training.steps=3", "resume.force=true")
    assert "dataset: not what it was at the checkpoint (changed: b.jsonl), by resume.force" in said
    happened = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    (changed,) = (event for event in happened if event["event"] == "changed")
    assert changed["step"] == 2
    assert changed["contents"] == {"dataset": "changed: b.jsonl"}

    # From now on the new content is the run's.
    beside = place / "checkpoint/step-3/inputs.json"
    assert json.loads(beside.read_text())["dataset"]["parts"].keys() == {"a.jsonl", "b.jsonl"}
    beside.unlink()
    manifest = place / "checkpoint/step-3/manifest.json"
    content = json.loads(manifest.read_text())
    del content["files"]["inputs.json"]
    manifest.write_text(json.dumps(content))
    said = train(place, f"dataset.path={data}", "training.steps=4")
    assert "was saved by an ATOM that did not note what the dataset and the tokenizer held" in said


# ---------------------------------------------------------------------------- finished, relabelled

# pasqal-io/qadence#569
FINISHED = {
    # The same command again: a sweep's runs that are done.
    "the same": ((), 0, ("is finished at step 3: nothing is left to train",)),
    "numbers in text": (
        ("architecture.dim='64'", "training.steps='3'"),
        0,
        ("step 3: nothing is",),
    ),
    "another layout": (
        ("parallelism=fsdp", "launch.ranks=2"),
        0,
        ("is finished at step 3", "launch.ranks: null → 2"),
    ),
    "another rate": (
        ("optimizer.lr=0.5", "resume.force=true"),
        2,
        ("has come to step 3", "optimizer.lr: 0.0003 → 0.5", "training.steps above 3"),
    ),
    "fewer steps": (
        ("training.steps=2", "lr_scheduler.total_steps=null"),
        2,
        ("has come to step 3", "training.steps: 3 → 2"),
    ),
    "another seed": (("debug.seed=5",), 2, ("debug.seed=5",)),
    "a dry run": (("dry_run=true", "optimizer.lr=0.5"), 0, ()),
}


@pytest.mark.parametrize("case", FINISHED)
def test_nothing_is_written_where_nothing_is_left_to_train(
    case: str, three_steps: Path, atom: Callable, texts: Path
) -> None:
    overrides, code, words = FINISHED[case]
    before = tree(three_steps)
    command = (*TINY, *GRADIENTS_KEPT, f"dataset.path={texts}", "training.steps=3")
    result = atom("train", *command, f"run.dir={three_steps}", *overrides)
    assert result.returncode == code, result.stdout + result.stderr
    for each in words:
        assert each in result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == (1 if code else 0)
    assert tree(three_steps) == before


def test_a_run_that_was_killed_after_its_last_checkpoint_is_finished(
    three_steps: Path, forked: Callable, tmp_path: Path
) -> None:
    """Its launcher died before it could say so."""
    place = shutil.copytree(three_steps, tmp_path / "run")
    happened = (place / "events.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(happened[-1])["event"] == "finished"
    (place / "events.jsonl").write_text("".join(happened[:-1]))
    assert json.loads(forked("status", str(place), "--json").stdout)["state"] == "finished"
    shutil.rmtree(place / "checkpoint/step-3")
    assert json.loads(forked("status", str(place), "--json").stdout)["state"] == "interrupted"


def test_a_run_that_ends_in_exported_weights_is_finished(
    three_steps: Path, train: Callable, tmp_path: Path
) -> None:
    """Its last steps were trained again at every start, and the weights went for damaged."""
    place = two_of(three_steps, tmp_path / "run")
    exported = ("checkpoint.last_save_model_only=true", "checkpoint.last_save_in_hf=true")
    train(place, *GRADIENTS_KEPT, *exported, "training.steps=3")
    before = tree(place)
    assert "checkpoint/step-3/model.safetensors.index.json" in before
    said = train(place, *GRADIENTS_KEPT, *exported, "training.steps=3")
    assert "is finished at step 3: nothing is left to train" in said
    assert tree(place) == before
    train(place, *GRADIENTS_KEPT, *exported, "training.steps=4")
    assert {path.name for path in (place / "checkpoint").iterdir()} >= {"step-3", "step-4"}
    assert [row["step"] for row in rows(place)] == [1, 2, 3, 4]
    happened = {event["event"] for event in events.read(place)}
    assert events.CHECKPOINT_DAMAGED not in happened


def test_a_finished_sweep_is_finished(
    train: Callable, atom: Callable, texts: Path, tmp_path: Path
) -> None:
    """Of weights alone, and of no checkpoint: before, both were trained again from the first step,
    over their metrics."""
    kept = ("checkpoint.last_save_model_only=true", "checkpoint.interval=500")
    sweep = (*kept, "training.steps=1", "checkpoint.enable=true,false", "-m")
    train(tmp_path, *sweep)
    before = tree(tmp_path)
    assert len([name for name in before if name.endswith("/run.yaml")]) == 3, (
        "one in the checkpoint"
    )
    said = train(tmp_path, *sweep)
    assert said.count("is finished at step 1: nothing is left to train") == 2
    for number, enable in enumerate(("true", "false")):
        command = (*TINY, f"dataset.path={texts}", f"run.dir={tmp_path / str(number)}", *kept)
        result = atom("train", *command, "training.steps=2", f"checkpoint.enable={enable}")
        assert result.returncode == 2
        assert "has left no checkpoint to train on from" in result.stderr
    # Hydra writes down a sweep before its first run; here none comes of it.
    command = (*TINY, f"dataset.path={texts}", f"run.dir={tmp_path}", *sweep, "optimizer.lr=1,2")
    assert atom("train", *command).returncode == 2
    assert tree(tmp_path) == before


# DDELab/deepsteganalysis#4, bytedance/jaqmc#55
def test_the_settings_that_made_the_first_steps_are_kept(
    three_steps: Path,
    train: Callable,
    start: Callable,
    forked: Callable,
    texts: Path,
    tmp_path: Path,
) -> None:
    """A start that goes on with other settings, one that ends before its first step, and a third:
    the folder, `atom compare` and `atom report` tell which settings made which steps."""
    place = two_of(three_steps, tmp_path / "run")
    first = {name: (place / name).read_bytes() for name in ("run.yaml", "lock.json")}
    others = (*GRADIENTS_KEPT, "training.steps=4")
    killed = start("run", *TINY, f"dataset.path={texts}", *others, "optimizer.lr=0.7")
    killed.wait_for(lambda: "lr: 0.7" in (place / "run.yaml").read_text())
    os.killpg(killed.process.pid, signal.SIGKILL)
    killed.end()
    assert (place / "events.jsonl").read_text().count('"under_way"') == 1
    said = train(place, *others, "optimizer.lr=0.001")
    assert "optimizer.lr: 0.0003 → 0.001" in said
    assert {name: (place / "history/1" / name).read_bytes() for name in first} == first
    assert "lr: 0.7" in (place / "history/2/run.yaml").read_text()
    happened = [json.loads(line) for line in (place / "events.jsonl").read_text().splitlines()]
    changed = [event for event in happened if event["event"] == "changed"]
    assert [event["step"] for event in changed] == [2, 2]
    assert changed[0]["settings"]["optimizer.lr"] == [0.0003, 0.7]

    result = forked("compare", str(place), str(three_steps), "--json")
    assert result.returncode == 0, result.stderr
    settings = json.loads(result.stdout)["settings"]
    assert settings["optimizer.lr"] == ["0.0003 to step 2, 0.001 from step 3", 0.0003]
    result = forked("report", str(place), "--out", str(tmp_path / "report.html"))
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "report.html").read_text()
    for each in ("changed on the way", "to step 2", "from step 3", "0.001"):
        assert each in page


COURSES = {
    "never begun": ([], []),
    "one start": ([("under_way", 1)], [(1, None, "run.yaml")]),
    "other settings": (
        [("under_way", 1), ("changed", 4), ("under_way", 5)],
        [(1, 4, "history/1"), (5, None, "run.yaml")],
    ),
    "a start before its first step": (
        [("under_way", 1), ("changed", 4), ("changed", 4), ("under_way", 5)],
        [(1, 4, "history/1"), (5, None, "run.yaml")],
    ),
    # The checkpoint of step 4 was damaged, and the one before it was gone on from.
    "further back": (
        [("under_way", 1), ("changed", 4), ("under_way", 3)],
        [(1, 2, "history/1"), (3, None, "run.yaml")],
    ),
    "a failure under the new settings": (
        [("under_way", 1), ("changed", 4), ("under_way", 5), ("under_way", 7)],
        [(1, 4, "history/1"), (5, None, "run.yaml")],
    ),
    "back beyond the change": (
        [("under_way", 1), ("changed", 4), ("under_way", 5), ("numerical_fault", 2)],
        [(1, 2, "history/1"), (3, None, "run.yaml")],
    ),
    "anew": ([("under_way", 1), ("changed", 0), ("under_way", 1)], [(1, None, "run.yaml")]),
    "an end before the first step": (
        [("under_way", 1), ("changed", 4)],
        [(1, None, "history/1")],
    ),
}


@pytest.mark.parametrize("case", COURSES)
def test_which_settings_made_which_steps(case: str, tmp_path: Path) -> None:
    happened, expected = COURSES[case]
    number = 0
    for name, step in happened:
        number += name == "changed"
        extra = {"kept": f"history/{number}", "to_step": step, "decision": "rollback"}
        events.record(tmp_path, name, step=step, **extra)
    found = history.periods(tmp_path, "run.yaml")
    files = [str(period.file.relative_to(tmp_path)).removesuffix("/run.yaml") for period in found]
    steps = [(period.first, period.last) for period in found]
    assert [(*each, file) for each, file in zip(steps, files, strict=True)] == expected


def test_every_setting_is_in_the_table_of_changes() -> None:
    """Those of torchtitan that have a part in the losses by name, all else by section."""
    from atom.titan import translate

    by_name = ("training", "lr_scheduler", "checkpoint", "debug")
    for section in by_name:
        for field in dataclasses.fields(translate.CONFIGS[section]):
            assert f"{section}.{field.name}" in changes.KINDS, f"{section}.{field.name}"
    for key in keys(Run):
        section = key.partition(".")[0]
        known = section in by_name or {key, section} & changes.KINDS.keys()
        assert known, key


def keys(model: type[pydantic.BaseModel], above: str = "") -> Iterator[str]:
    """Yield the keys of a model, those of its sections with dots."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, pydantic.BaseModel):
            yield from keys(field.annotation, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def tree(place: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content."""
    files = (path for path in place.rglob("*") if path.is_file())
    return {str(path.relative_to(place)): path.read_bytes() for path in files}
