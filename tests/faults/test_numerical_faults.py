"""A loss or a gradient that is not to be trusted: skipped, rolled back, or the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from atom.run_dir import events

pytestmark = pytest.mark.slow

SHORT = ("training.steps=12", "checkpoint.interval=4", "data.trace=true")
QUICK = ("faults.window=4", "faults.spike_threshold=20")


def found(job, event: str = events.NUMERICAL_FAULT) -> list[dict]:
    return [each for each in events.read(job.place) if each["event"] == event]


def documents(job, step: int) -> list[set[str]]:
    """Return all names that each trace line of a step on rank 0 holds, in the order written."""
    lines = (job.place / "logs/samples_rank_0.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return [
        {name for spans in each["lanes"].values() for _, name, _, _ in spans}
        for each in steps
        if each["step"] == step
    ]


def test_gradient_that_is_not_finite_stops(damaged: Callable, rows: Callable) -> None:
    job = damaged(*SHORT, forwards=(6,))
    code, _, said = job.end()
    assert code == 1
    assert "the gradient norm of step 6 is nan" in said
    (fault,) = found(job)
    assert (fault["step"], fault["decision"], fault["grad_norm"]) == (6, "stop", None)
    assert math.isfinite(fault["loss"])
    assert [row["step"] for row in rows(job.place)] == [1, 2, 3, 4, 5]
    assert len(found(job, events.STARTED)) == 1  # another try would meet it again


def test_gradient_that_is_not_finite_is_skipped(
    damaged: Callable, train: Callable, rows: Callable, tmp_path
) -> None:
    job = damaged(*SHORT, "faults.non_finite=skip", forwards=(6,))
    code, shown, said = job.end()
    assert code == 0, said
    assert "the gradient norm of step 6 is nan; the step is skipped" in shown
    (fault,) = found(job)
    assert fault["decision"] == "skip"
    assert set(fault["documents"]) == documents(job, 6)[0]
    whole = train(tmp_path / "whole", *SHORT, "parallelism=fsdp", "launch.ranks=2")
    after = rows(job.place)
    assert [row["step"] for row in after] == list(range(1, 13))
    assert [row["loss"] for row in after[:6]] == [row["loss"] for row in whole[:6]]
    assert after[5]["grad_norm"] is None
    # The weights are as they were, and finite from then on; rate and tokens went on.
    assert all(math.isfinite(row["loss"] + row["grad_norm"]) for row in after[6:])
    assert after[6]["loss"] != whole[6]["loss"]
    for name in ("lr", "tokens_seen"):
        assert [row[name] for row in after] == [row[name] for row in whole]


def test_spike_rolls_back_and_leaves_the_data_out(
    damaged: Callable, rows: Callable, atom: Callable, small: tuple[str, ...], tmp_path: Path
) -> None:
    job = damaged(*SHORT, *QUICK, "faults.spike=rollback", forwards=(7,), factor=1e5)
    code, shown, said = job.end()
    assert code == 0, said
    (fault,) = found(job)
    assert (fault["step"], fault["decision"], fault["to_step"]) == (7, "rollback", 4)
    assert "rolling back to step 4, without the data since" in shown
    after = rows(job.place)
    assert [row["step"] for row in after] == list(range(1, 13))
    assert all(row["grad_norm"] < 100 for row in after)
    aside = (job.place / "metrics.rolled_back.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in aside] == [5, 6]
    lines = (job.place / "logs/samples_rank_0.jsonl").read_text().splitlines()
    spans = [json.loads(line) for line in lines]
    assert [each["step"] for each in spans] == [1, 2, 3, 4, 5, 6, *range(5, 13)]
    # Each lane goes on where it stood: what was read for step 7 is left out, nothing is read twice.
    read = [
        (lane, epoch, name, first)
        for each in spans
        for lane, parts in each["lanes"].items()
        for epoch, name, first, _ in parts
    ]
    assert len(read) == len(set(read))
    assert fault["left_out"] == 3
    last = {each["step"]: each["lanes"] for each in spans}
    for step, options in ((5, ()), (5, ("--from-start",)), (12, ())):
        command = ("data", "at", str(job.place), "--step", str(step), "--json", *options)
        done = atom(*command, PYTHONPATH=str(tmp_path / "site"))
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)["lanes"]
        assert {lane: told[lane] for lane in last[step]} == last[step]
    # A branch goes on in the data where the run stood, and tells so without the run.
    site = str(tmp_path / "site")
    branch = tmp_path / "branch"
    words = ("training.steps=10", "data.trace=true", f"run.dir={branch}")
    done = atom("train", *small, *words, f"resume.from={job.place}@8", PYTHONPATH=site)
    assert done.returncode == 0, done.stderr
    done = atom("data", "at", str(branch), "--step", "9", "--json", "--from-start")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["lanes"]
    assert {lane: told[lane] for lane in last[9]} == last[9]


def test_rollback_needs_a_checkpoint(damaged: Callable) -> None:
    job = damaged(*SHORT, "faults.non_finite=rollback", forwards=(2,))
    code, _, said = job.end()
    assert code == 1
    assert "the gradient norm of step 2 is nan; there is no checkpoint to roll back to" in said


def test_budget_is_exhausted(damaged: Callable) -> None:
    job = damaged(*SHORT, "faults.non_finite=skip", "faults.budget=2", forwards=(3, 5, 6, 8))
    code, _, said = job.end()
    assert code == 1
    assert "the gradient norm of step 6 is nan; that exceeds faults.budget=2 in 100" in said
    assert [fault["decision"] for fault in found(job)] == ["skip", "skip", "stop"]


def test_replicas_that_differ(damaged: Callable) -> None:
    job = damaged(*SHORT, "faults.replica_check_interval=3", layout="ddp", forwards=(5,), flip=True)
    code, _, said = job.end()
    assert code == 1
    (event,) = found(job, events.REPLICAS_DIFFER)
    assert event["step"] == 6
    assert "differ after step 6: ranks 0, 1 differ in " in said


def test_replicas_that_agree(train: Callable, tmp_path) -> None:
    layout = ("parallelism=ddp", "launch.ranks=2", "training.steps=4")
    assert len(train(tmp_path / "run", *layout, "faults.replica_check_interval=2")) == 4


def test_gradient_is_not_finite_on_one_rank_of_a_pipeline(
    damaged: Callable, rows: Callable
) -> None:
    """The ranks of both stages, and both that share its tensors, skip the same step."""
    degrees = ("parallelism.tensor_parallel_degree=2", "parallelism.pipeline_parallel_degree=2")
    # One forward pass finds the shapes out, then there are two a step: the sixth is of step 3.
    sizes = ("training.global_batch_size=2", "parallelism.pipeline_parallel_microbatch_size=1")
    job = damaged(
        *("training.steps=6", "faults.non_finite=skip", "launch.ranks=4", *degrees, *sizes),
        layout="single",
        forwards=(6,),
    )
    code, _, said = job.end()
    assert code == 0, said
    (fault,) = found(job)
    assert (fault["step"], fault["decision"], fault["grad_norm"]) == (3, "skip", None)
    after = rows(job.place)
    assert [row["step"] for row in after] == list(range(1, 7))
    assert after[2]["grad_norm"] is None
    assert all(math.isfinite(row["loss"] + row["grad_norm"]) for row in after if row["step"] != 3)


def test_step_that_gives_other_bits_when_it_is_replayed(damaged: Callable) -> None:
    # Once, in the third forward pass, which is the third step: too little for anyone to see.
    job = damaged(*SHORT, "faults.replay_check_interval=3", forwards=(3,), factor=1.0001)
    code, _, said = job.end()
    assert code == 1
    (event,) = found(job, events.REPLAY_DIFFERS)
    assert event["step"] == 3
    assert "step 3 computed again gives other bits: rank 0 (" in said
    assert len(said.splitlines()) == 1


def test_replays_change_nothing(train: Callable, tmp_path) -> None:
    """Of a mixture of experts, whose buffers count tokens, and with gradients accumulated."""
    given = (
        "architecture=deepseek_v3_tiny",
        *("parallelism=fsdp", "launch.ranks=2", "training.steps=4"),
        *("training.local_batch_size=2",),
    )
    plain = train(tmp_path / "plain", *given)
    checked = train(tmp_path / "checked", *given, "faults.replay_check_interval=2")
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in plain] == [row[name] for row in checked]
