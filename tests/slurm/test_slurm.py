"""Runs on a real Slurm of three nodes, against the same run on this machine, step by step.

The jobs share two cores, and most of their time is waiting; so those that do not disturb each other
are at work at the same time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atom.run_dir import checkpoint, evals, events, metrics
from atom.testing.installing import describe

sys.path.append(str(Path(__file__).parents[2] / "plugins/atom-evaluators/tests"))

from made import requests

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

LAYOUT = ("parallelism=fsdp", "launch.ranks=2")
TWO_NODES = ("launcher=slurm", "launcher.nodes=2", "launcher.exclusive=false")
STEPS = 40
LOADED_SECONDS = 600
"""For what takes half a minute on a machine that has nothing else to do."""

PACE = """
import time

from pydantic import BaseModel, Field

from atom.plugin import Callback, TrainerCallback, hookimpl

ATOM_INTERFACE = 1


@hookimpl
def atom_callbacks():
    yield Callback(
        name="pace", summary="a step takes so long", config="pace:Seconds", callback="pace:Pace"
    )


class Seconds(BaseModel, extra="forbid"):
    step: float = Field(description="least seconds of a step")


class Pace(TrainerCallback):
    def __init__(self, config, _context):
        self.step = config.step

    def after_step(self, _training):
        time.sleep(self.step)
"""
"""A plugin: how long a run trains must not depend on how fast the machine is."""

Submit = Callable[..., int]


@pytest.fixture(scope="session")
def reference(
    train: Callable[..., list[dict]], tmp_path_factory: pytest.TempPathFactory
) -> list[float]:
    """The losses of every step on this machine."""
    steps = (f"training.steps={STEPS}", "lr_scheduler.total_steps=1000")
    rows = train(tmp_path_factory.mktemp("local"), *LAYOUT, *steps)
    return [row["loss"] for row in rows]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def submit(
    atom: Callable,
    cluster: Any,
    place: Path,
    small: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Submit:
    """Submit a run by the real command; return the number of the job."""
    site = tmp_path_factory.mktemp("site")
    (site / "pace.py").write_text(PACE)
    describe(site, "pace")

    def run(folder: str, *overrides: str, step_seconds: float = 0.2) -> int:
        result = atom(
            *("train", *small, *TWO_NODES, f"run.dir={folder}", f"training.steps={STEPS}"),
            "lr_scheduler.total_steps=1000",
            f"callbacks.pace={{name: pace, step: {step_seconds}}}",
            *overrides,
            cwd=place,
            PYTHONPATH=str(site),
            **cluster.environment,
        )
        assert result.returncode == 0, result.stderr
        match = re.search(r"Submitted batch job (\d+)", result.stdout)
        assert match is not None, result.stdout
        return int(match[1])

    return run


@pytest.fixture(scope="session")
def jobs(submit: Submit, place: Path) -> dict[str, int]:
    """The jobs that are at work together."""
    # 80 seconds of training in jobs of two minutes: Slurm warns after half a minute to one.
    short = ("launcher.time=2", "launcher.signal_seconds=60")
    own = requests(place / "requests")
    evaluating = (
        *("checkpoint.interval=20", "evaluation.interval=20", "evaluation.tasks=[own:colors_rc]"),
        f"evaluators.own={{name: olmes, path: {own['path']}}}",
    )
    links = ("launcher.time=30", "launcher.check_links=true")
    return {
        "chained": submit("chained", *LAYOUT, *short, step_seconds=2),
        "stopped": submit("stopped", *LAYOUT, *links, *evaluating),
    }


def wait_for_end(cluster: Any, job: int, place: Path, seconds: float = LOADED_SECONDS) -> None:
    """Wait until a job, and those that follow it, have ended."""
    name = f"atom-{place.name}"

    def ended() -> bool:
        listed = cluster.call("squeue", "-h", "-o", "%j %i %r").splitlines()
        ours = [line.split() for line in listed if line.startswith(name)]
        for _, number, why in ours:
            if why == "BeginTime":  # Slurm lets two minutes pass before it starts a job again
                cluster.call("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)
        return not ours

    try:
        cluster.wait_for(ended, seconds)
    except AssertionError:
        raise AssertionError(said(place)) from None
    # Jobs that evaluate may end later.
    assert events.FINISHED in happened(place), (job, said(place))


def said(run: Path) -> str:
    """Return what the jobs of a run have printed."""
    return "".join(path.read_text() for path in sorted((run / "logs").glob("slurm-*.out")))


def losses(run: Path) -> list[float]:
    rows = metrics.read(run / metrics.FILE_NAME)
    assert [row.step for row in rows] == list(range(1, len(rows) + 1))
    return [row.loss for row in rows]


def happened(run: Path) -> list[str]:
    return [event["event"] for event in events.read(run)]


def test_a_signal_leads_to_a_checkpoint_a_requeue_and_the_same_losses(
    jobs: dict[str, int], cluster: Any, place: Path, reference: list[float]
) -> None:
    run = place / "stopped"
    cluster.wait_for(lambda: metrics.last_step(run / metrics.FILE_NAME) >= 2, LOADED_SECONDS)
    cluster.call("scancel", "--signal=USR1", str(jobs["stopped"]))
    wait_for_end(cluster, jobs["stopped"], run)
    assert losses(run) == reference
    (stopped,) = [event for event in events.read(run) if event["event"] == events.STOPPED]
    assert stopped["reason"] == "SIGUSR1"
    assert 2 <= stopped["step"] < STEPS
    resumed = [event for event in events.read(run) if event["event"] == events.RESUMED]
    assert [event["step"] for event in resumed] == [stopped["step"]]
    assert happened(run).count(events.STARTED) == 2
    # The same job: it was requeued, and both nodes took part.
    assert {path.name for path in (run / "logs").glob("slurm-*")} == {
        f"slurm-{jobs['stopped']}.out"
    }
    assert {path.name for path in (run / "logs").glob("*_1.jsonl")} == {
        "rank_1.jsonl",
        "node_1.jsonl",
    }


def test_each_checkpoint_is_evaluated_by_a_job_of_its_own(
    jobs: dict[str, int], cluster: Any, place: Path
) -> None:
    """The job of the run has submitted it; it records its results itself, also after the run."""
    run = place / "stopped"
    kinds = (events.EVALUATED, events.EVALUATION_FAILED)
    cluster.wait_for(
        lambda: {e["step"] for e in events.read(run) if e["event"] in kinds} == {20, STEPS},
        LOADED_SECONDS,
    )
    assert events.EVALUATION_FAILED not in happened(run), events.read(run)
    submitted = [e["job"] for e in events.read(run) if e["event"] == events.EVALUATION_SUBMITTED]
    numbers = {int(words.split()[-1]) for words in submitted}
    assert len(numbers) == 2
    assert jobs["stopped"] not in numbers
    outputs = {path.name for path in (run / "logs").glob("evaluation-*.out")}
    assert outputs == {f"evaluation-{number}.out" for number in numbers}
    assert {row.step for row in evals.read(run)} == {20, STEPS}


def test_jobs_follow_each_other_over_the_time_limit(
    jobs: dict[str, int], cluster: Any, place: Path, reference: list[float]
) -> None:
    run = place / "chained"
    wait_for_end(cluster, jobs["chained"], run)
    assert losses(run) == reference
    found = happened(run)
    assert found.count(events.STOPPED) >= 1, "Slurm has sent no warning"
    assert found.count(events.STARTED) >= 2
    assert events.FAILED not in found, "a job was killed at its limit"


def test_a_sweep_is_one_array(atom: Callable, small: tuple, cluster: Any, place: Path) -> None:
    swept = place / "swept"
    result = atom(
        *("train", "-m", *small, "launcher=slurm", "launcher.exclusive=false", f"run.dir={swept}"),
        *("optimizer.lr=1e-3,2e-3", "training.steps=2", "launcher.check_nodes=false"),
        **cluster.environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Submitted batch job") == 1
    cluster.wait_for(
        lambda: "atom-swept" not in cluster.call("squeue", "-h", "-o", "%j"), LOADED_SECONDS
    )
    runs = [swept / str(number) for number in range(2)]
    assert [happened(run)[-1] for run in runs] == [events.FINISHED] * 2
    rates = [metrics.read(run / metrics.FILE_NAME)[0].lr for run in runs]
    assert rates == [1e-3, 2e-3]
    assert all(len(list((run / "logs").glob("slurm-*.out"))) == 1 for run in runs)


def test_a_lost_node_leads_to_a_requeue_on_others(
    submit: Submit, cluster: Any, place: Path, reference: list[float]
) -> None:
    """The processes of a node vanish with its daemon, as they do when it loses power."""
    run = place / "lost"
    job = submit("lost", *LAYOUT, "launcher.time=30", "checkpoint.interval=2")
    cluster.wait_for(lambda: checkpoint.steps(run / checkpoint.FOLDER), LOADED_SECONDS)
    before = nodes_of(cluster, job)
    lost = before[1]
    cluster.kill_node(lost)
    try:
        wait_for_end(cluster, job, run)
    finally:
        cluster.start_node(lost)
    assert losses(run) == reference
    last = [event for event in events.read(run) if event["event"] == events.RESUMED][-1]
    assert last["step"] >= 2
    assert happened(run).count(events.STARTED) >= 2


def test_nodes_with_slow_links_are_left_out(submit: Submit, cluster: Any, place: Path) -> None:
    """The two of the job are, and a job on other two cannot be: there are three in all."""
    run = place / "slow"
    speed = ("launcher.check_links=true", "launcher.min_link_gb_per_second=1e6")
    job = submit("slow", *LAYOUT, "launcher.time=30", *speed)
    nodes = nodes_of(cluster, job) if cluster.call("squeue", "-h", "-j", str(job)) else []
    cluster.wait_for(
        lambda: "atom-slow" not in cluster.call("squeue", "-h", "-o", "%j"), LOADED_SECONDS
    )
    lines = [line for line in said(run).splitlines() if line.startswith("atom-links")]
    assert len(lines) == 2, said(run)
    assert all(" bad: all-reduce with n" in line for line in lines)
    excluded = (run / "excluded_nodes.txt").read_text().split()
    assert len(excluded) == 2
    assert set(nodes) <= set(excluded)
    assert "too few nodes of this job are well" in said(run)
    assert not (run / "events.jsonl").exists(), "ranks were started"


def nodes_of(cluster: Any, job: int) -> list[str]:
    listed = cluster.call("squeue", "-h", "-j", str(job), "-o", "%N").strip()
    names: str = cluster.call("scontrol", "show", "hostnames", listed)
    return names.split()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (("launcher.queue=nowhere",), "invalid partition specified: nowhere"),
        (("launcher.nodes=2", "launcher.spares=7"), "Node count specification invalid"),
    ],
)
def test_a_refusal_is_told_in_slurms_words(
    override: tuple[str, ...], words: str, atom: Callable, small: tuple, cluster: Any, place: Path
) -> None:
    result: subprocess.CompletedProcess[str] = atom(
        *("train", *small, *TWO_NODES, *LAYOUT, "run.dir=refused", *override),
        cwd=place,
        **cluster.environment,
    )
    assert result.returncode == 2, result.stdout
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith("atom: Slurm refuses the job: ")
    assert words in sentence
