"""A finished run stays as it is; its folder tells which settings made which steps."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pydantic
import pytest
from resumed import GRADIENTS_KEPT, TINY, rows, tree, two_of

from atom.recipe.run import Run
from atom.run_dir import changes, events, history

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
        ("has reached step 3", "optimizer.lr: 0.0003 → 0.5", "training.steps above 3"),
    ),
    "fewer steps": (
        ("training.steps=2", "lr_scheduler.total_steps=null"),
        2,
        ("has reached step 3", "training.steps: 3 → 2"),
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
    assert len([name for name in before if name.endswith("/run.yaml")]) == 5, (
        "one in the checkpoint, and one of each start"
    )
    said = train(tmp_path, *sweep)
    assert said.count("is finished at step 1: nothing is left to train") == 2
    for number, enable in enumerate(("true", "false")):
        command = (*TINY, f"dataset.path={texts}", f"run.dir={tmp_path / str(number)}", *kept)
        result = atom("train", *command, "training.steps=2", f"checkpoint.enable={enable}")
        assert result.returncode == 2
        assert "left no checkpoint to continue from" in result.stderr
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
    for each in ("changed during the run", "to step 2", "from step 3", "0.001"):
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
            if (section, field.name) == ("lr_scheduler", "phases"):
                continue  # ATOM's own, of lr_scheduler.stages
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
