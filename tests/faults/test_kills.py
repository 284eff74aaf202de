"""Ranks killed while a checkpoint is written or read, several at once, and among four."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from atom.run_dir import checkpoint, events, heartbeat, status

pytestmark = pytest.mark.slow

STEPS = 40
RUN = (
    *("parallelism=fsdp", "launch.ranks=2", f"training.steps={STEPS}", "checkpoint.interval=3"),
    *("launch.max_restarts=20", "checkpoint.keep_latest_k=2"),
)


def happened(place: Path, event: str) -> list[dict]:
    return [each for each in events.read(place) if each["event"] == event]


def kill_while(job, chance: random.Random, now: Callable[[], bool]) -> None:
    """Kill a random rank at a moment when ``now`` holds.

    It is stopped first, so that what all ranks have to take part in does not end meanwhile; where
    it had ended already, the rank goes on, and the next such moment is waited for.
    """
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline, "no such moment"
        assert job.process.poll() is None, job.process.communicate()
        if not now():
            time.sleep(0.001)  # looking without a pause would take a core from the ranks
            continue
        ranks = job.ranks()
        if len(ranks) < 2:
            continue
        victim = chance.choice(ranks)
        os.kill(victim, signal.SIGSTOP)
        if now():
            break
        os.kill(victim, signal.SIGCONT)
    failures = len(happened(job.place, events.FAILED))
    os.kill(victim, signal.SIGKILL)
    job.wait_for(lambda: len(happened(job.place, events.FAILED)) > failures)


def test_kills_during_saves_and_loads(start: Callable, train: Callable, tmp_path: Path) -> None:
    chance = random.Random(20261126)
    job = start("run", *RUN)
    folder = job.place / "checkpoint"

    def saving() -> bool:
        return any(folder.glob(".step-*.partial"))

    def loading() -> bool:
        """A checkpoint was found, and no rank has begun a step since."""
        found = events.read(job.place)
        if not found or found[-1]["event"] != events.RESUMED:
            return False
        return heartbeat.last(job.place)[1] < _seconds(found[-1]["time"])

    job.wait_for(lambda: checkpoint.steps(folder))  # else there is nothing to load
    for kill, moment in enumerate((saving, loading, saving, loading)):
        kill_while(job, chance, moment)
        if moment is loading:
            job.wait_for_step(6 + 4 * kill)
    code, _, said = job.end()
    assert code == 0, said
    assert len(happened(job.place, events.FAILED)) == 4
    undisturbed = train(tmp_path / "undisturbed", *RUN)
    after = [json.loads(line) for line in (job.place / "metrics.jsonl").open()]
    for name in ("step", "loss", "grad_norm", "tokens_seen"):
        assert [row[name] for row in after] == [row[name] for row in undisturbed], name
    assert not list(folder.glob(".step-*"))

    # What it cost is told, and the figures agree with each other.
    recovered = happened(job.place, events.RECOVERED)
    assert recovered
    assert all("killed by SIGKILL" in each["cause"] for each in recovered)
    assert {each["rank"] for each in recovered} <= {0, 1}
    found = status.status(job.place)
    assert (found.state, found.step, found.restarts) == ("finished", STEPS, 4)
    assert found.lost == sum(each["seconds"] for each in recovered) > 0
    aside = (job.place / "metrics.rolled_back.jsonl").read_text().splitlines()
    assert found.steps_lost == len(aside)
    assert found.productive == pytest.approx(sum(row["step_seconds"] for row in after))
    # The repetition of a step counts, and is a part of what was lost.
    repeated = {json.loads(line)["step"] for line in aside}
    twice = sum(row["step_seconds"] for row in after if row["step"] in repeated)
    assert found.productive + found.lost - twice < found.wall
    assert found.goodput == pytest.approx(found.productive / found.wall)


def test_two_of_four_ranks_are_killed_and_one_is_stopped(start: Callable, rows: Callable) -> None:
    chance = random.Random(8)
    layout = ("parallelism=fsdp", "launch.ranks=4", "launch.hang_seconds=60")
    job = start("run", *layout, "training.steps=8", "checkpoint.interval=3")
    job.wait_for_step(5)
    first, second, third = chance.sample(job.ranks(), 3)
    os.kill(third, signal.SIGSTOP)
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    code, _, said = job.end()
    assert code == 0, said
    (failed,) = happened(job.place, events.FAILED)
    assert failed["restart"]
    (recovered,) = happened(job.place, events.RECOVERED)
    assert recovered["rank"] == failed["rank"]
    after = rows(job.place)
    assert [row["step"] for row in after] == list(range(1, 9))
    # What was done before is done again, to the last bit.
    aside = [json.loads(line) for line in (job.place / "metrics.rolled_back.jsonl").open()]
    assert aside
    for row in aside:
        assert row["loss"] == after[row["step"] - 1]["loss"]
        assert row["grad_norm"] == after[row["step"] - 1]["grad_norm"]


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
