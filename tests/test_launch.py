"""What becomes of ranks: they fail, are killed, interrupted, or started by another launcher."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.run_dir import checkpoint, evals, events
from atom.testing.installing import describe

sys.path.append(str(Path(__file__).parents[1] / "plugins/atom-evaluators/tests"))

from made import evaluating

pytestmark = pytest.mark.slow

FSDP = ("parallelism=fsdp", "launch.ranks=2")


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
                TEARS
            yield atom.plugin.Document("word " * 40, f"{lane}/{number}")

def source(config):
    return Source()
"""


@pytest.mark.parametrize(
    ("tears", "words"),
    [
        ('raise ValueError("the tape has torn")', "ValueError: the tape has torn (see "),
        # Its peer only sees a closed connection.
        ("import os; os._exit(0)", "it ended with exit code 0 before the training did; something"),
    ],
)
def test_failed_rank_says_its_own_error_once(
    tears: str, words: str, atom: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin"
    describe(plugin, "faulty")
    (plugin / "faulty.py").write_text(FAULTY.replace("TEARS", tears))
    result = atom(
        *("train", *small, *FSDP, "run.dir=run", "training.steps=50", "~dataset"),
        *("+dataset.name=faulty", "checkpoint.interval=2"),
        cwd=tmp_path,
        PYTHONPATH=str(plugin),
    )
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith(f"atom: rank 1 failed: {words}")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stdout
    if "(see " not in words:
        return
    log = tmp_path / re.search(r"\(see (.*)\)", result.stderr)[1]  # type: ignore[index]
    failed = [json.loads(line) for line in log.read_text().splitlines()][-1]
    assert failed["event"] == "rank failed"
    assert 'raise ValueError("the tape has torn")' in failed["exception"]


def test_killed_rank_is_named_and_ends_the_others(start: Callable) -> None:
    job = start("run", *FSDP, "training.steps=5000", "launch.max_restarts=0")
    job.wait_for_step(2)
    os.kill(job.ranks()[1], signal.SIGKILL)
    code, _, said = job.end()
    assert code == 1
    assert said == "atom: rank 1 failed: killed by SIGKILL (out of memory?)\n"


def test_interrupted_run_can_go_on(
    start: Callable, atom: Callable, small: tuple[str, ...], rows: Callable, tmp_path: Path
) -> None:
    job = start("run", *FSDP, "training.steps=5000")
    job.wait_for_step(8)
    os.killpg(job.process.pid, signal.SIGINT)  # as a terminal does
    code, shown, said = job.end()
    assert code == 75
    assert "SIGINT: stopping after the next step, with a checkpoint; Ctrl-C again" in shown
    before = rows(job.place)
    assert f"after step {before[-1]['step']}, with a checkpoint; the same command" in said
    assert len(said.splitlines()) == 1

    last = before[-1]["step"] + 2
    result = atom("train", *small, *FSDP, "run.dir=run", f"training.steps={last}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"resumed after step {before[-1]['step']}" in result.stdout
    after = rows(job.place)
    assert [row["step"] for row in after] == list(range(1, last + 1))
    assert before == after[: len(before)], "a stop on request loses no step"


def test_two_interrupts_end_at_once(start: Callable) -> None:
    job = start("run", *FSDP, "training.steps=5000", "checkpoint.interval=3")
    job.wait_for(lambda: checkpoint.steps(job.place / "checkpoint"))
    # A rank that stands still keeps the others from ending their step.
    os.kill(job.ranks()[1], signal.SIGSTOP)
    os.killpg(job.process.pid, signal.SIGINT)
    time.sleep(1)
    os.killpg(job.process.pid, signal.SIGINT)
    code, _, said = job.end()
    assert code == 1
    assert said == "atom: interrupted\n"
    assert checkpoint.resumable(job.place / "checkpoint")


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

    result = run("run.dir=run", *evaluating(tmp_path))
    assert result.returncode == 0, result.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5]
    assert "step 5/5" in result.stdout
    # By a process beside rank 0, which is no rank.
    (scored,) = (e for e in events.read(tmp_path / "run") if e["event"] == events.EVALUATED)
    assert scored["step"] == 5
    assert set(scored["numbers"]) == {row.name for row in evals.read(tmp_path / "run")}

    refused = run("run.dir=other", "training.global_batch_size=3")
    assert refused.returncode != 0
    sentence = "atom: training.global_batch_size=3 (command line): must be a multiple of 2"
    assert refused.stderr.count(sentence) == 1
    assert not (tmp_path / "other").exists()
