"""Shards that are damaged: named by file and line, put up with as far as a run says."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.launch.failure import RANK_FAILED
from atom.run_dir import events
from atom.titan.data_at import data_at

pytestmark = pytest.mark.slow

STEPS = 24
RUN = ("parallelism=fsdp", "launch.ranks=2", f"training.steps={STEPS}", "checkpoint.interval=4")
TRACED = (*RUN, "data.trace=true")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write a folder of two JSON lines shards of 200 records each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in "ab":
        records = (
            json.dumps({"text": f"record {n} of shard {shard}: " + "word " * 20})
            for n in range(200)
        )
        (folder / f"{shard}.jsonl").write_text("\n".join(records) + "\n")
    return folder


def failures(place: Path) -> int:
    return sum(each["event"] == events.FAILED for each in events.read(place))


def trace(place: Path) -> dict[tuple[int, str], list]:
    """Return what every lane was given at each step that counts: a rank's last line for it."""
    found = {}
    for path in sorted((place / "logs").glob("samples_rank_*.jsonl")):
        mine = {}
        for line in path.read_text().splitlines():
            step = json.loads(line)
            mine[step["step"]] = step["lanes"]
        for step, lanes in mine.items():
            for lane, spans in lanes.items():
                assert (step, lane) not in found, "two ranks read one lane"
                found[step, lane] = [tuple(span) for span in spans]
    return found


def test_samples_across_kills_are_those_of_an_undisturbed_run(
    start: Callable, train: Callable, tmp_path: Path
) -> None:
    train(tmp_path / "undisturbed", *TRACED)
    job = start("run", *TRACED)
    for kill, step in enumerate((6, 13), 1):
        job.wait_for_step(step)
        os.kill(job.ranks()[kill % 2], signal.SIGKILL)
        job.wait_for(lambda kill=kill: failures(job.place) >= kill)
    code, _, said = job.end()
    assert code == 0, said
    samples = trace(job.place)
    assert samples == trace(tmp_path / "undisturbed")
    assert {step for step, _ in samples} == set(range(1, STEPS + 1))
    for step, from_start in ((1, False), (5, False), (STEPS, False), (14, True)):
        for sequence in data_at(job.place, step, from_start=from_start):
            told = [part.span for part in sequence.parts]
            assert told == samples[step, str(sequence.number)]
    # None twice, and none left out: the parts of a document that a lane read follow each other.
    pairs = [
        (epoch, name, pair)
        for spans in samples.values()
        for epoch, name, first, count in spans
        for pair in range(first, first + count)
    ]
    assert len(pairs) == len(set(pairs)) == STEPS * 8 * 64
    ends: dict[tuple[int, str], int] = {}
    for (_, _), spans in sorted(samples.items(), key=lambda each: each[0][0]):
        for epoch, name, first, count in spans:
            assert first == ends.get((epoch, name), 0)
            ends[epoch, name] = first + count


def test_shard_cut_in_the_middle(atom: Callable, shards: Path, small: tuple) -> None:
    shard = shards / "b.jsonl"
    os.truncate(shard, shard.stat().st_size // 2)
    lines = shard.read_bytes().count(b"\n") + 1
    run = shards.parent / "run"
    given = ("train", *small, *RUN, "dataset=local", f"dataset.path={shards}", f"run.dir={run}")
    refused = atom(*given)
    assert refused.returncode == 2
    assert f"line {lines} of {shard} is no JSON record" in refused.stderr
    assert not run.exists()
    tolerant = atom(*given, "dataset.max_bad_fraction=0.1")
    assert tolerant.returncode == 0, tolerant.stderr
    (bad,) = [each for each in events.read(run) if each["event"] == events.BAD_DOCUMENT]
    assert bad["document"] == f"{shard}:{lines}"
    assert f"skipped a document: line {lines} of {shard}" in tolerant.stdout


def test_shard_of_text_that_is_not_utf_8(atom: Callable, tmp_path: Path, small: tuple) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"text number {number}\n" * 5)
    shard = texts / "7.txt"
    # Beyond what is looked at before training.
    shard.write_bytes(b"text number 7\n" * 400 + b"caf\xe9\n" + b"text number 7\n" * 100)
    line = 401
    given = ("train", *small, *RUN, "dataset=local", f"dataset.path={texts}")
    stopped = atom(*given, f"run.dir={tmp_path / 'strict'}")
    assert stopped.returncode == 1
    assert f"line {line} of {shard}: byte 0xe9 is not UTF-8" in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert RANK_FAILED not in stopped.stderr
    run = tmp_path / "tolerant"
    tolerant = atom(*given, f"run.dir={run}", "dataset.max_bad_fraction=0.05")
    assert tolerant.returncode == 0, tolerant.stderr
    named = {e["reason"] for e in events.read(run) if e["event"] == events.BAD_DOCUMENT}
    assert named == {f"line {line} of {shard}: byte 0xe9 is not UTF-8"}


def test_shard_that_changes_under_a_run(start: Callable, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(64):
        (texts / f"{number}.txt").write_text(f"text number {number}\n" * 100)
    local = ("dataset=local", f"dataset.path={texts}")
    job = start("run", *RUN[:2], "training.steps=5000", *local)
    job.wait_for_step(3)
    for path in texts.iterdir():
        path.write_text("another text")
    code, _, said = job.end()
    assert code == 1
    assert "has changed under the run (it had " in said
    assert len(said.splitlines()) == 1
