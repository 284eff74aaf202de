"""Faults injected into real runs: what is left is what an undisturbed run leaves, bit by bit."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.run_dir import checkpoint, events
from atom.titan.train.startup import PHASES

pytestmark = pytest.mark.slow

LAYOUT = ("parallelism=fsdp", "launch.ranks=2", "checkpoint.interval=4")
LONG = (*LAYOUT, "training.steps=40")
RUN = (*LAYOUT, "training.steps=24")


@pytest.fixture(scope="module")
def undisturbed(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return train(tmp_path_factory.mktemp("undisturbed") / "run", *LONG)


@pytest.fixture
def same(rows: Callable, undisturbed: list[dict]) -> Callable[[Path], None]:
    """Each step is there once, with the very losses of the run that nothing happened to."""

    def check(place: Path, steps: int = 24) -> None:
        found, expected = rows(place), undisturbed[:steps]
        assert [row["step"] for row in found] == list(range(1, steps + 1))
        for name in ("loss", "grad_norm", "tokens_seen"):
            assert [row[name] for row in found] == [row[name] for row in expected], name

    return check


def happened(place: Path, event: str) -> list[dict]:
    return [each for each in events.read(place) if each["event"] == event]


def test_five_kills_in_one_run(start: Callable, same: Callable) -> None:
    chance = random.Random(20261124)
    job = start("run", *LONG)
    for kill in range(5):
        job.wait_for_step(5 + 6 * kill + chance.randrange(4))
        victim = chance.choice(job.ranks())
        os.kill(victim, signal.SIGKILL)
        job.wait_for(lambda kill=kill: len(happened(job.place, events.FAILED)) > kill)
    code, shown, said = job.end()
    assert code == 0, said
    assert shown.count("killed by SIGKILL (out of memory?); restarting the ranks") == 5
    assert all(each["restart"] for each in happened(job.place, events.FAILED))
    same(job.place, 40)


def test_launcher_is_killed(start: Callable, same: Callable) -> None:
    job = start("run", *RUN)
    job.wait_for_step(10)
    os.kill(job.process.pid, signal.SIGKILL)
    job.end()  # nothing outlives it
    again = start("run", *RUN)
    code, _, said = again.end()
    assert code == 0, said
    (resumed,) = happened(job.place, events.RESUMED)
    first, second = happened(job.place, events.UNDER_WAY)
    assert (first["step"], second["step"]) == (1, resumed["step"] + 1)
    assert tuple(second["seconds"]) == tuple(second["slowest"]) == PHASES
    assert all(0 <= second["seconds"][phase] <= second["slowest"][phase] for phase in PHASES)
    same(job.place)


def test_rank_that_hangs(start: Callable, same: Callable) -> None:
    job = start("run", *RUN, "launch.hang_seconds=6", "comm.trace_buf_size=100")
    job.wait_for_step(10)
    os.kill(job.ranks()[1], signal.SIGSTOP)
    code, _, said = job.end()
    assert code == 0, said
    (failed,) = happened(job.place, events.FAILED)
    assert failed["reason"].startswith("no step in 6 s: ranks hang")
    stacks = (job.place / "logs/rank_0.txt").read_text()
    assert re.search(r'File ".*torchtitan/trainer.py", line \d+ in train', stacks)
    trace = pickle.loads((job.place / "comm_traces/rank_0").read_bytes())
    assert any("all_reduce" in entry["profiling_name"] for entry in trace["entries"])
    (recovered,) = happened(job.place, events.RECOVERED)
    assert recovered["seconds"] > 6
    assert recovered["cause"] == failed["reason"]
    same(job.place)


def test_term_and_kill_at_once(start: Callable, same: Callable) -> None:
    job = start("run", *RUN)
    job.wait_for_step(6)
    os.kill(job.ranks()[0], signal.SIGKILL)
    os.kill(job.process.pid, signal.SIGTERM)
    code, _, said = job.end()
    assert code in (1, 75), said
    code, _, said = start("run", *RUN).end()
    assert code == 0, said
    same(job.place)


@pytest.fixture(scope="module")
def twelve_steps(train: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after its third checkpoint; each test damages a copy."""
    place: Path = tmp_path_factory.mktemp("twelve") / "run"
    train(place, *LAYOUT, "training.steps=12")
    return place


def test_all_checkpoints_are_damaged(twelve_steps: Path, start: Callable, tmp_path: Path) -> None:
    """The run does not train from the first step in silence."""
    place = tmp_path / "run"
    shutil.copytree(twelve_steps, place)
    for data in place.glob("checkpoint/step-*/__1_0.distcp"):
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    before = (place / "metrics.jsonl").read_bytes()
    code, _, said = start("run", *LAYOUT, "training.steps=16").end()
    assert code == 1
    assert "all checkpoints of the run are damaged and were set aside" in said
    assert (place / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "bit flip", "missing", "no manifest"])
def test_newest_checkpoint_is_damaged(
    damage: str, twelve_steps: Path, start: Callable, same: Callable, tmp_path: Path
) -> None:
    shutil.copytree(twelve_steps, tmp_path / "run")
    newest = tmp_path / "run/checkpoint/step-12"
    data = newest / "__1_0.distcp"
    if damage == "truncated":
        os.truncate(data, 1000)
    elif damage == "bit flip":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "missing":
        data.unlink()
    else:
        (newest / checkpoint.MANIFEST).unlink()
    job = start("run", *LAYOUT, "training.steps=16")
    code, shown, said = job.end()
    assert code == 0, said
    (event,) = happened(job.place, events.CHECKPOINT_DAMAGED)
    assert event["step"] == 12
    assert (job.place / "checkpoint" / event["place"]).is_dir()
    assert f"checkpoint of step 12 is damaged ({event['reason']})" in shown
    assert happened(job.place, events.RESUMED)[-1]["step"] == 8
    same(job.place, 16)


def test_files_cannot_grow(start: Callable, same: Callable) -> None:
    """As on a full disk or over a quota: saving fails, training goes on, the end says so."""

    job = start("run", *RUN, file_size=600_000)
    code, shown, said = job.end()
    assert code == 1
    assert "could not be written" in said
    assert len(said.splitlines()) == 1
    assert "checkpoint of step 4 could not be written" in shown
    assert not checkpoint.steps(job.place / "checkpoint")
    assert not list((job.place / "checkpoint").glob(".step-*"))
    same(job.place)


def test_two_jobs_on_one_folder(start: Callable, atom: Callable, tmp_path: Path) -> None:
    job = start("run", *LAYOUT, "training.steps=5000")
    job.wait_for_step(2)
    result = atom("train", "run.dir=run", "device=cpu", cwd=tmp_path)
    assert result.returncode == 2
    assert f"a job is at work in it: process {job.process.pid} on " in result.stderr
    os.kill(job.process.pid, signal.SIGTERM)
    assert job.end()[0] == 75
