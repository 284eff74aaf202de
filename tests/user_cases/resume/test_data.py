"""A run goes on with the data and the tokenizer that it began with, and refuses others."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from resumed import TINY, rows, tree

from atom.io.process import call
from atom.run_dir.prepare import data_changed

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
    assert "has other content than when the checkpoint of step 2" in result.stderr


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
    assert "not restarted: the dataset has changed under the run (changed: b.jsonl)" in said


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
    assert (
        "dataset: differs from that of the checkpoint (changed: b.jsonl), allowed by resume.force"
        in said
    )
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
    assert "has no digests of the dataset and the tokenizer" in said
