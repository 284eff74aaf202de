"""What becomes of ranks: they fail, are killed, interrupted, or started by another launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atom import checkpoint

pytestmark = pytest.mark.slow

FSDP = ("parallelism=fsdp", "launch.ranks=2")


@pytest.fixture
def start(
    environment: dict[str, str], small: tuple[str, ...], tmp_path: Path
) -> Iterator[Callable]:
    """Start ``atom train`` in the background, in a process group of its own."""
    processes: list[subprocess.Popen[str]] = []

    def run(*overrides: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "atom", "train", *small, *overrides],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def members(group: int) -> list[int]:
    """Return the processes of a group, without those that have ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)


@pytest.fixture
def wait_for_step(rows: Callable) -> Callable[[Path, int], None]:
    def wait(place: Path, step: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if (place / "metrics.jsonl").exists() and len(rows(place)) >= step:
                return
            time.sleep(0.1)
        pytest.fail(f"no step {step} in two minutes")

    return wait


def wait_for_end(group: int) -> None:
    deadline = time.monotonic() + 30
    while members(group):
        assert time.monotonic() < deadline, f"still there: {members(group)}"
        time.sleep(0.1)


FAULTY = """
import atom.plugin

@atom.plugin.hookimpl
def atom_datasets():
    yield atom.plugin.Dataset(name="faulty", summary="Fails on one lane", source="faulty:source")

class Source:
    def check(self):
        return "faulty"

    def lane(self, lane, lanes, *, seed, epoch, start=0):
        for number in range(start, 100):
            if lane == 5 and number == 2:
                raise ValueError("the tape has torn")
            yield atom.plugin.Document("word " * 40, f"{lane}/{number}")

def source(config):
    return Source()
"""


def test_failed_rank_says_its_own_error_once(
    atom: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin"
    (plugin / "faulty-1.dist-info").mkdir(parents=True)
    (plugin / "faulty.py").write_text(FAULTY)
    (plugin / "faulty-1.dist-info/METADATA").write_text("Name: faulty\nVersion: 1\n")
    (plugin / "faulty-1.dist-info/entry_points.txt").write_text("[atom]\nfaulty = faulty\n")
    result = atom(
        *("train", *small, *FSDP, "run.dir=run", "training.steps=50", "~dataset"),
        *("+dataset.name=faulty", "checkpoint.interval=2"),
        cwd=tmp_path,
        PYTHONPATH=str(plugin),
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("atom: rank 1 failed: ValueError: the tape has torn (see ")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stdout
    log = tmp_path / re.search(r"\(see (.*)\)", result.stderr)[1]  # type: ignore[index]
    failed = [json.loads(line) for line in log.read_text().splitlines()][-1]
    assert failed["event"] == "rank failed"
    assert 'raise ValueError("the tape has torn")' in failed["exception"]


def test_killed_rank_is_named_and_ends_the_others(
    start: Callable, wait_for_step: Callable, tmp_path: Path
) -> None:
    process = start(*FSDP, "run.dir=run", "training.steps=5000", "launch.max_restarts=0")
    wait_for_step(tmp_path / "run", 2)
    # The launcher, the process that starts ranks, and the ranks in order.
    *_, first, second = members(process.pid)
    os.kill(second, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == "atom: rank 1 failed: killed by SIGKILL (out of memory?)\n"
    wait_for_end(process.pid)
    assert first != second


def test_interrupted_run_can_go_on(
    start: Callable,
    atom: Callable,
    small: tuple[str, ...],
    wait_for_step: Callable,
    rows: Callable,
    tmp_path: Path,
) -> None:
    settings = (*FSDP, "run.dir=run", "checkpoint.interval=3")
    process = start(*settings, "training.steps=5000")
    wait_for_step(tmp_path / "run", 8)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    shown, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "SIGINT: stopping after the next step, with a checkpoint; Ctrl-C again" in shown
    before = rows(tmp_path / "run")
    assert f"after step {before[-1]['step']}, with a checkpoint; the same command" in said
    assert len(said.splitlines()) == 1
    wait_for_end(process.pid)

    last = before[-1]["step"] + 2
    result = atom("train", *small, *settings, f"training.steps={last}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"resumed after step {before[-1]['step']}" in result.stdout
    after = rows(tmp_path / "run")
    assert [row["step"] for row in after] == list(range(1, last + 1))
    assert before == after[: len(before)], "a stop on request loses no step"


def test_two_interrupts_end_at_once(
    start: Callable, wait_for_step: Callable, tmp_path: Path
) -> None:
    # A stopped rank keeps the others from ending their step.
    process = start(*FSDP, "run.dir=run", "training.steps=5000", "checkpoint.interval=3")
    wait_for_step(tmp_path / "run", 5)
    os.kill(members(process.pid)[-1], signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == "atom: interrupted\n"
    wait_for_end(process.pid)
    assert checkpoint.resumable(tmp_path / "run/checkpoint")


def test_ranks_that_torchrun_started_join_one_run(
    environment: dict[str, str], small: tuple[str, ...], rows: Callable, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "atom"]

    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*torchrun, "train", *small, "parallelism=fsdp", *overrides],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    result = run("run.dir=run")
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert "step 5/5" in result.stdout

    refused = run("run.dir=other", "training.global_batch_size=3")
    assert refused.returncode != 0
    sentence = "atom: training.global_batch_size=3 (command line): must be a multiple of 2"
    assert refused.stderr.count(sentence) == 1
    assert not (tmp_path / "other").exists()
