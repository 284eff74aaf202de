"""A mixture is read exactly, on every layout, over the border of a stage, and after a resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from traced_runs import TRACED

from atom.recipe.run import read
from atom.run_dir import events, metrics

Command = Callable[..., CompletedProcess[str]]

TINY = ("dataset=mixture", *TRACED)
WEB = "dataset.sources.web={name: local, path: web, weight: 0.7}"
CODE = "dataset.sources.code={name: local, path: code, weight: 0.3}"
MATH = "dataset.sources.math={name: local, path: math, weight: 0}"
ANNEAL = "dataset.stages.anneal={from_step: 4, weights: {code: 1}}"
STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    for name in ("web", "code", "math"):
        (folder / name).mkdir()
        for number in range(12):
            text = f"{name} has the text {number} " * (8 + number)
            (folder / name / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def train(atom: Command, place: Path) -> Callable[..., CompletedProcess[str]]:
    def train(run: str, *settings: str, steps: int = STEPS) -> CompletedProcess[str]:
        words = (*TINY, f"training.steps={steps}", f"run.dir={run}", *settings)
        return atom("train", *words, cwd=place, OMP_NUM_THREADS="1")

    return train


@pytest.fixture(scope="module")
def whole(train: Command, place: Path) -> Path:
    """A run on one rank that is not interrupted."""
    done = train("whole", WEB, CODE, ANNEAL)
    assert done.returncode == 0, done.stderr
    return place / "whole"


@pytest.fixture(scope="module")
def sharded(train: Command, place: Path) -> Path:
    """The run on two ranks, which lists its sources in another order."""
    ranks = ("launch.ranks=2", "parallelism=fsdp")
    done = train("sharded", ANNEAL, CODE, WEB, *ranks)
    assert done.returncode == 0, done.stderr
    return place / "sharded"


@pytest.fixture
def half(sharded: Path) -> Iterator[str]:
    """A copy of the sharded run, stopped after step 4: one step of the stage is done."""
    copy = sharded.with_name("half")
    shutil.copytree(sharded, copy)
    shutil.rmtree(copy / "checkpoint" / "step-6")
    for file in (copy / "logs").glob("samples_rank_*"):
        file.unlink()
    yield copy.name
    shutil.rmtree(copy)


def samples(run: Path) -> dict[int, dict[int, list[Any]]]:
    """Return step -> lane -> spans; of a step that was repeated, the last."""
    found: dict[int, dict[int, list[Any]]] = {}
    for file in sorted((run / "logs").glob("samples_rank_*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            lanes = {int(lane): spans for lane, spans in row["lanes"].items()}
            found[row["step"]] = found.get(row["step"], {}) | lanes
    return found


def losses(run: Path) -> list[float]:
    return [row.loss for row in metrics.read(run / metrics.FILE_NAME)]


def sources(lanes: Mapping[int, list[Any]]) -> set[str]:
    return {span[1].partition(":")[0] for spans in lanes.values() for span in spans}


@pytest.mark.slow
def test_layouts_read_the_same_mixture(whole: Path, sharded: Path) -> None:
    assert samples(whole) == samples(sharded)
    assert losses(sharded) == pytest.approx(losses(whole), rel=1e-5)
    read_by = {step: sources(lanes) for step, lanes in samples(whole).items()}
    assert all(read_by[step] == {"web", "code"} for step in (1, 2, 3))
    assert all(read_by[step] == {"code"} for step in (4, 5, 6))
    resolved = read(whole / "run.yaml").resolved
    assert resolved is not None
    assert resolved.mixture is not None
    assert [stage.first_step for stage in resolved.mixture.stages] == [1, 4]
    found = [spans for lanes in samples(whole).values() for spans in lanes.values()]
    for told in resolved.mixture.sources:
        # A sequence has one source, so it is counted by its first document.
        mine = [spans for spans in found if spans[0][1].startswith(f"{told.name}: ")]
        assert told.tokens == 64 * len(mine)


@pytest.mark.slow
def test_a_run_resumes_on_another_layout(
    train: Command, half: str, place: Path, whole: Path
) -> None:
    done = train(half, WEB, CODE, ANNEAL)
    assert done.returncode == 0, done.stderr
    assert "resumed after step 4" in done.stdout
    assert samples(place / half)[5] == samples(whole)[5]
    assert samples(place / half)[6] == samples(whole)[6]
    assert losses(place / half) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_a_later_stage_changes_while_a_run_resumes(
    train: Command, half: str, place: Path, whole: Path, atom: Command
) -> None:
    final = "dataset.stages.final={from_step: 6, weights: {math: 3, web: 1}}"
    done = train(half, MATH, WEB, CODE, ANNEAL, final, steps=7)
    assert done.returncode == 0, done.stderr
    run = place / half
    assert samples(run)[5] == samples(whole)[5]
    for step in (6, 7):
        names = [spans[0][1].partition(":")[0] for spans in samples(run)[step].values()]
        assert sorted(names) == ["math"] * 3 + ["web"]
    # `web` goes on where step 3 left it.
    read_before = {
        (span[1], span[2])
        for step in (1, 2, 3)
        for lane in samples(whole)[step].values()
        for span in lane
    }
    later = [span for step in (6, 7) for lane in samples(run)[step].values() for span in lane]
    assert not any((span[1], span[2]) in read_before for span in later if span[0] == 0)
    (change,) = [event for event in events.read(run) if event["event"] == events.CHANGED]
    assert change["settings"]["dataset.stages.final"][0] is None
    assert "changed, with an effect on the losses:\n  dataset.sources.math" in done.stdout
    resolved = read(run / "run.yaml").resolved
    assert resolved is not None
    assert resolved.mixture is not None
    assert resolved.mixture.names == ["code", "web", "math"]
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "stages from step 1 first: web 70 %, code 30 %" in lines
    assert "from step 6 final: math 75 %, web 25 %" in lines
    assert "math 21.4 %, 384 tokens, 12 documents" in lines
    # A checkpoint of three sources is resumed from, too.
    again = train(half, MATH, WEB, CODE, ANNEAL, final, steps=8)
    assert again.returncode == 0, again.stderr
    report = atom("report", str(run), cwd=place)
    assert report.returncode == 0, report.stderr
    page = next(run.glob("report*.html")).read_text()
    assert "math 75 %, web 25 %" in page
    assert "from step 6" in page


REFUSED = {
    "the begin of the current stage": (
        (WEB, CODE, "dataset.stages.anneal={from_step: 5, weights: {code: 1}}"),
        "dataset.stages.anneal.from_step=5",
    ),
    "the weights of the current stage": (
        (WEB, CODE, "dataset.stages.anneal={from_step: 4, weights: {code: 2, web: 1}}"),
        "dataset.stages.anneal.weights.code=2",
    ),
    "an earlier weight": (
        ("dataset.sources.web={name: local, path: web, weight: 0.6}", CODE, ANNEAL),
        "dataset.sources.web.weight=0.6",
    ),
    "a source that was read, removed": ((CODE, ANNEAL), "dataset.sources.web=null"),
    "a source that was read, with another parameter": (
        ("dataset.sources.web={name: local, path: web, weight: 0.7, max_chars: 64}", CODE, ANNEAL),
        "dataset.sources.web.max_chars=64",
    ),
    "a new stage within what has been read": (
        (WEB, CODE, ANNEAL, "dataset.stages.b={from_step: 2, weights: {web: 1}}"),
        "dataset.stages.b=",
    ),
    "a new source within what has been read": (
        (WEB, CODE, ANNEAL, "dataset.sources.math={name: local, path: math, weight: 1}"),
        "dataset.sources.math=",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_been_read_does_not_change(
    case: str, forked: Command, half: str, place: Path
) -> None:
    words, told = REFUSED[case]
    before = {path: path.stat().st_mtime_ns for path in (place / half).rglob("*")}
    done = forked("train", *TINY, "training.steps=6", f"run.dir={half}", *words, cwd=place)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"atom: {told}"), done.stderr
    assert "half holds checkpoints of a run with" in done.stderr
    assert "resume.force=true" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in (place / half).rglob("*")} == before


@pytest.mark.slow
def test_files_of_a_source_that_was_read_do_not_change(
    atom: Command, half: str, place: Path
) -> None:
    words = ("train", *TINY, "training.steps=6", f"run.dir={half}", WEB, CODE, ANNEAL)
    page = place / "web" / "3.txt"
    text = page.read_text()
    page.write_text("another text")
    try:
        done = atom(*words, cwd=place)
    finally:
        page.write_text(text)
    assert done.returncode == 2, done.stdout
    assert "changed: web/3.txt" in done.stderr


def stage(begin: str, weights: str) -> str:
    return f"dataset.stages.late={{{begin}, weights: {weights}}}"


BAD = {
    "no source": (
        (),
        "dataset.sources (command line): is required and has no value",
    ),
    "an unknown parameter": (
        (WEB, "dataset.sources.web.pth=web"),
        "dataset.sources.web.pth=web (command line): pth is no key here; did you mean path?",
    ),
    "no share": ((WEB, "dataset.sources.web.weight=null"), "either weight or tokens"),
    "nan": ((WEB, "dataset.sources.web.weight=.nan"), "weight=.nan (command line): must be a num"),
    "a source without a stage": (
        (WEB, MATH),
        "dataset.sources.math.weight=0.0 (command line): no stage reads the source",
    ),
    "an unknown source": (
        (WEB, stage("from_step: 2", "{wep: 1}")),
        "dataset.stages.late.weights.wep=1.0 (command line): there is no source wep; did you mean "
        "web?",
    ),
    "stages of a nested mixture": (
        (
            "dataset.sources.a={name: mixture, weight: 1, sources: {web: {name: local, path: web, "
            "weight: 1}}, stages: {b: {from_step: 2, weights: {web: 1}}}}",
        ),
        "dataset.sources.a.stages (command line): the mixture is part of another one",
    ),
    "repetitions of a nested mixture": (
        (
            "dataset.sources.a={name: mixture, weight: 1, max_repetitions: 2, "
            "sources: {web: {name: local, path: web, weight: 1}}}",
        ),
        "dataset.sources.a.max_repetitions=2.0 (command line): a mixture has no repetitions",
    ),
    "files that are not there, in a nested mixture": (
        (
            "dataset.sources.a={name: mixture, weight: 1, "
            "sources: {web: {name: local, path: wep, weight: 1}}}",
        ),
        "dataset.sources.a.sources.web.path=wep (command line): there is no such file",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_told_without_torch(case: str, forked: Command, place: Path) -> None:
    words, told = BAD[case]
    done = forked("train", *TINY, "training.steps=6", "run.dir=bad", *words, cwd=place)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (place / "bad").exists()


@pytest.mark.slow
def test_a_stage_after_the_run_is_refused(train: Command, place: Path) -> None:
    done = train("bad", WEB, stage("from_step: 7", "{web: 1}"))
    assert done.returncode == 2
    assert (
        "dataset.stages.late.from_step=7 (command line): the run ends after step 6" in done.stderr
    )
    assert not (place / "bad").exists()
