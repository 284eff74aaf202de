"""A run begins from a checkpoint of another one, with its optimizer and its place in the data."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from traced_runs import TRACED

from atom.recipe.run import read
from atom.run_dir import branch, events, metrics

pytestmark = pytest.mark.slow

Command = Callable[..., CompletedProcess[str]]

TINY = (*TRACED, "training.steps=6")
LOCAL = ("dataset=local", "dataset.path=texts")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branch")
    for name in ("texts", "code"):
        (folder / name).mkdir()
        for number in range(12):
            (folder / name / f"{number}.txt").write_text(f"{name} {number} has words " * 30)
    return folder


@pytest.fixture(scope="module")
def main(atom: Command, place: Path) -> Path:
    done = atom("train", *TINY, *LOCAL, "run.dir=main", cwd=place, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    return place / "main"


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def losses(run: Path) -> dict[int, float]:
    return {row.step: row.loss for row in metrics.read(run / metrics.FILE_NAME)}


def samples(run: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for file in (run / "logs").glob("samples_rank_*.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[row["step"]] = found.get(row["step"], {}) | row["lanes"]
    return found


def test_a_branch_of_the_same_settings_is_the_run(atom: Command, main: Path, place: Path) -> None:
    """Without its moments, the optimizer would go on differently; the layout is another one."""
    before = content(main)
    words = ("run.dir=same", "resume.from=main@4", "launch.ranks=2", "parallelism=fsdp")
    done = atom("train", *TINY, *LOCAL, *words, cwd=place, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert f"begun from step 4 of {main}: data continues" in done.stdout
    same = place / "same"
    expected = losses(main)
    assert losses(same) == pytest.approx({step: expected[step] for step in (5, 6)}, rel=1e-5)
    assert samples(same) == {step: samples(main)[step] for step in (5, 6)}
    assert content(main) == before
    assert [row.tokens_seen for row in metrics.read(same / metrics.FILE_NAME)] == [1280, 1536]
    (event,) = [each for each in events.read(same) if each["event"] == events.BRANCHED]
    assert (event["step"], event["origin"], event["data"]) == (4, str(main), [])


def test_a_branch_anneals_on_other_data(atom: Command, main: Path, place: Path) -> None:
    words = (
        "dataset=mixture",
        "dataset.sources.code={name: local, path: code, weight: 1}",
        "dataset.sources.texts={name: local, path: texts, weight: 0}",
        "dataset.stages.late={from_step: 7, weights: {texts: 1}}",
        "training.seq_len=128",
        "optimizer.lr=5e-4",
        "training.steps=7",
        "run.dir=anneal",
        "resume.from=main@4",
    )
    planned = atom("train", *TINY, *words, "--dry-run", cwd=place, OMP_NUM_THREADS="1")
    assert planned.returncode == 0, planned.stderr
    for line in (
        "data     mixture, 24 documents in 24 files",
        "         code   66.7 %, 1,024 tokens, 12 documents",
        "stages   from step 5  first: code 100 %",
        "         from step 7  late: texts 100 %",
    ):
        assert line in planned.stdout.splitlines()
    # The other run may delete its checkpoint while the branch lives.
    kept = main / "checkpoint" / "step-4"
    done = atom("train", *TINY, *words, cwd=place, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    anneal = place / "anneal"
    assert "data begins anew (dataset.name: local → mixture; training.seq_len" in done.stdout
    assert "optimizer.lr: 0.001 → 0.0005" in done.stdout
    read_by = samples(anneal)
    assert set(read_by) == {5, 6, 7}
    for lane in read_by[5].values():
        assert lane[0][1].startswith("code: ")
        assert (lane[0][0], lane[0][2]) == (0, 0)
    assert all(lane[0][1].startswith("texts: ") for lane in read_by[7].values())
    resolved = read(anneal / "run.yaml").resolved
    assert resolved is not None
    assert resolved.mixture is not None
    assert {each.name: each.tokens for each in resolved.mixture.sources} == {
        "code": 2 * 4 * 128,
        "texts": 4 * 128,
    }
    # From its own checkpoints it resumes like any run, and needs the other no more.
    aside = kept.rename(main / "moved")
    shutil.rmtree(anneal / "checkpoint" / "step-7")
    again = atom("train", *TINY, *words, cwd=place, OMP_NUM_THREADS="1")
    aside.rename(kept)
    assert again.returncode == 0, again.stderr
    assert "resumed after step 6" in again.stdout
    assert "begun from" not in again.stdout
    assert losses(anneal).keys() == {5, 6, 7}


@pytest.mark.parametrize("sequences", [2, 8])
def test_a_branch_of_other_sequences_begins_its_data(
    sequences: int, atom: Command, main: Path, place: Path
) -> None:
    """Each sequence has a position in the data, and the checkpoint those of four."""
    words = (
        f"training.global_batch_size={sequences}",
        f"run.dir=of_{sequences}",
        "data.trace=true",
    )
    line = (*TINY, *LOCAL, *words, "training.steps=5", f"resume.from={main}@4")
    done = atom("train", *line, cwd=place, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert f"data begins anew (training.global_batch_size: 4 → {sequences})" in done.stdout
    read_by = samples(place / f"of_{sequences}")[5]
    assert [read_by[str(n)][0][:3:2] for n in range(sequences)] == [[0, 0]] * sequences
    assert at(atom, place / f"of_{sequences}", 5) == read_by


def test_a_forced_branch_of_another_model_is_a_sentence(
    atom: Command, main: Path, place: Path
) -> None:
    words = ("architecture.dim=128", "resume.force=true", "run.dir=forced", f"resume.from={main}@4")
    done = atom("train", *TINY, *LOCAL, *words, cwd=place, OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "forced/checkpoint/step-4 is of another model: Size mismatch between" in done.stderr


def test_a_damaged_checkpoint_begins_no_run(
    forked: Command, main: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = place / "other"
    shutil.copytree(main, other)
    (file,) = (other / "checkpoint" / "step-4").glob("__0_0.distcp")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    words = ("run.dir=none", "resume.from=other@4")
    done = forked("train", *TINY, *LOCAL, *words, cwd=place)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stdout + done.stderr
    assert "other/checkpoint/step-4 is damaged: __0_0.distcp has other content" in done.stderr
    assert not (place / "none").exists()
    # Ranks check what is too large to be checked before, and the copy of a start that was killed.
    monkeypatch.setattr(branch, "_HASHED", 0)
    done = forked("train", *TINY, *LOCAL, *words, cwd=place, OMP_NUM_THREADS="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the checkpoint is damaged, and its copy in the run folder was set aside" in done.stderr
    assert not (place / "none" / metrics.FILE_NAME).exists()


def at(atom: Command, run: Path, step: int, *options: str) -> Any:
    """Return what ``atom data at`` tells of a step: its lanes, or the error."""
    words = ("data", "at", str(run), "--step", str(step), "--json", *options)
    done = atom(*words, cwd=run.parent)
    return json.loads(done.stdout)["lanes"] if done.returncode == 0 else done.stderr


def test_what_a_step_read_is_told_after_changes_of_the_data(atom: Command, place: Path) -> None:
    """By the declaration of the start that trained it: the others read something else."""
    run = place / "changed"
    other = ("dataset=local", "dataset.path=code")
    for steps, *words in (
        (2, *LOCAL),
        (4, *other, "resume.force=true"),
        (6, *other, "checkpoint.exclude_from_loading=[dataloader]"),
        (7, *other, "checkpoint.exclude_from_loading=[dataloader]"),
    ):
        line = (*TRACED, f"training.steps={steps}", *words, "run.dir=changed")
        done = atom("train", *line, cwd=place, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    trace = samples(run)
    assert trace[5] != trace[1]  # of the other data
    assert [lane[0][2] for lane in trace[5].values()] == [0] * 4  # begun anew
    for step in (1, 3, 4, 5, 7):
        assert at(atom, run, step) == trace[step], step
    for step in (2, 6):
        assert at(atom, run, step, "--from-start") == trace[step]
    assert "changed by force after step 2" in at(atom, run, 4, "--from-start")
    # From the newest checkpoint, that is: from others, the positions of the old data would be used.
    shutil.rmtree(run / "checkpoint" / "step-2")
    assert "changed by force after step 2" in at(atom, run, 4)


REFUSED = {
    "no such step": (("resume.from=main@3",), "has no whole checkpoint of step 3; valid: @STEP"),
    "no such run": (("resume.from=nope@3",), "holds no checkpoint to resume from"),
    "nothing left": (("resume.from=main@6",), "training.steps=6 (command line): a run from step 6"),
    "another model": (("resume.from=main@4", "architecture.dim=128"), "architecture.dim=128"),
    "itself": (("resume.from=main@4", "run.dir=main"), "is the run itself"),
    "other sequences, by force": (
        ("training.global_batch_size=2", "training.steps=8", "resume.force=true", "run.dir=main"),
        "run with training.global_batch_size=4; valid: that value, or resume.from=main in another",
    ),
    "weights, too": (("resume.from=main@4", "checkpoint.initial_load=main"), "one of the two"),
    "by torchtitan's key": (
        ("checkpoint.initial_load=main", "checkpoint.initial_load_model_only=false"),
        "valid: true, or resume.from=RUN@STEP",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_told_without_torch(
    case: str, forked: Command, main: Path, place: Path
) -> None:
    words, told = REFUSED[case]
    before = content(main)
    done = forked("train", *TINY, *LOCAL, "run.dir=bad", *words, cwd=place)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr, done.stderr
    assert not (place / "bad").exists()
    assert content(main) == before
