"""The schedule of the global batch: sizes, data, layouts, resuming, plans and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_documents import Bytes, documents
from optimizer_configs import section_run

from atom.data.position import sequences_before
from atom.recipe.batches import Batches, batches
from atom.recipe.schedules import phases, rate
from atom.titan.train.data import DocumentLoader


def of(stages: list[dict[str, Any]], last: int, seq_len: int = 10) -> Batches:
    training = {"batch_schedule": stages, "global_batch_size": last, "seq_len": seq_len}
    return batches(section_run(training=training))


def megatron(start: int, rise: int, tokens: int, last: int, seq_len: int, steps: int) -> list[int]:
    """The batches of ``--rampup-batch-size START RISE SAMPLES``, from what Megatron documents: in
    (last - start)/rise equal parts of the samples, counted as they are consumed.
    """
    found: list[int] = []
    for _ in range(steps):
        parts = tokens / ((last - start) / rise)
        found.append(min(start + int(sum(found) * seq_len / parts) * rise, last))
    return found


@pytest.mark.parametrize(
    ("start", "rise", "tokens", "last"),
    [(2, 2, 600, 8), (8, 8, 16_000, 32), (1, 3, 1_000, 10), (4, 4, 10, 64), (3, 1, 5_000, 4)],
)
def test_a_ramp_in_tokens_is_megatrons(start: int, rise: int, tokens: int, last: int) -> None:
    made = of([{"tokens": tokens, "global_batch_size": start, "increment": rise}], last)
    expected = megatron(start, rise, tokens, last, 10, 200)
    assert [made.size(step) for step in range(1, 201)] == expected


SCHEDULES: dict[str, tuple[list[dict[str, Any]], list[int]]] = {
    "none": ([], [8] * 9),
    "steps": (
        [{"steps": 2, "global_batch_size": 2}, {"steps": 3, "global_batch_size": 4}],
        [2, 2, 4, 4, 4, 8, 8, 8, 8],
    ),
    "tokens, rounded up": ([{"tokens": 41, "global_batch_size": 2}], [2, 2, 2, 8, 8, 8, 8, 8, 8]),
    "a ramp in steps": (
        [{"steps": 5, "global_batch_size": 2, "increment": 2}],
        [2, 4, 4, 6, 6, 8, 8, 8, 8],
    ),
    "a ramp to the next stage": (
        [
            {"steps": 2, "global_batch_size": 1, "increment": 1},
            {"tokens": 60, "global_batch_size": 3},
        ],
        [1, 2, 3, 3, 8, 8, 8, 8, 8],
    ),
    "down again": (
        [{"steps": 1, "global_batch_size": 4}, {"steps": 2, "global_batch_size": 2}],
        [4, 2, 2, 8, 8, 8, 8, 8, 8],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_sizes_and_sums(name: str) -> None:
    """Sums against adding up step by step; the rate in tokens follows the batches."""
    stages, expected = SCHEDULES[name]
    made = of(stages, 8)
    assert [made.size(step) for step in range(1, 10)] == expected
    read = [sum(expected[:steps]) for steps in range(10)]
    assert [made.sequences(steps) for steps in range(10)] == read
    assert made.counts(9) == {size: expected.count(size) for size in expected}
    assert sorted(made.turns(9)) == [
        1,
        *(n + 1 for n in range(1, 9) if expected[n] != expected[n - 1]),
    ]
    assert [made.rounds(steps) for steps in range(10)] == [math.ceil(n / 8) for n in read]
    for after in range(4):
        for tokens in (1, 10, 70, 75, 200):
            steps = next(
                n for n in range(30) if made.tokens(after + n) >= made.tokens(after) + tokens
            )
            assert made.steps(tokens, after=after) == steps
    warm = {"stages": [{"tokens": 70, "to": 1}]}
    drawn = phases(section_run(lr_scheduler=warm), made)
    full = next(step for step in range(1, 10) if 10 * read[step] >= 70)
    assert [rate(drawn, step) == 1 for step in range(1, 10)] == [
        step >= full for step in range(1, 10)
    ]


def test_left_out_data_is_counted_in_the_sizes_of_its_steps() -> None:
    made = of([{"steps": 4, "global_batch_size": 2}], 8)
    fault = {"event": "numerical_fault", "to_step": 3, "left_out": 2, "done": 4}
    assert sequences_before(4, [fault], made.sequences) == 6 + (2 + 8)
    assert sequences_before(3, [fault], made.sequences) == 4


SOURCE = documents(*((37 * n * n + 11 * n) % 97 for n in range(60)))
RAMP = [{"steps": 2, "global_batch_size": 2}, {"steps": 4, "global_batch_size": 4, "increment": 2}]


def loader(ranks: int, rank: int, batch: int, scheduled: bool = True) -> DocumentLoader:
    config = DocumentLoader.Config(
        source=SOURCE, seed=0, global_batch_size=8, batches=of(RAMP, 8, 16) if scheduled else None
    )
    made = config.build(
        dp_world_size=ranks,
        dp_rank=rank,
        tokenizer=Bytes(),
        seq_len=16,
        local_batch_size=batch,
        snapshot_every_n_steps=None,
    )
    assert isinstance(made, DocumentLoader)
    return made


def read(made: list[DocumentLoader], steps: range) -> list[list[list[int]]]:
    """The sequences of each step, in any order."""
    iterators = [iter(one) for one in made]
    found = []
    for step in steps:
        rows: list[list[int]] = []
        for one, iterator in zip(made, iterators, strict=True):
            for _ in range(one.passes(step)):
                inputs, labels = next(iterator)
                rows += torch.cat([inputs["input"], labels], dim=1).tolist()
        found.append(sorted(rows))
    return found


@pytest.mark.parametrize(("ranks", "batch"), [(1, 2), (1, 1), (2, 1)])
def test_the_data_is_that_of_the_largest_batch_in_every_layout(ranks: int, batch: int) -> None:
    """And on other ranks after step 4, with the checkpoint's states."""
    whole = iter(loader(1, 0, 1, scheduled=False))
    expected = []
    for size in (sizes := [of(RAMP, 8).size(step) for step in range(1, 13)]):
        rows = [next(whole) for _ in range(size)]
        expected.append(sorted(torch.cat([x["input"], y], dim=1)[0].tolist() for x, y in rows))
    assert sizes == [2, 2, 4, 4, 6, 6, *[8] * 6]
    made = [loader(ranks, rank, batch) for rank in range(ranks)]
    assert read(made, range(1, 5)) == expected[:4]
    saved = {name: state for one in made for name, state in one.state_dict().items()}
    assert int(saved["cursor"]) == 12 % 8
    later = [loader(2, rank, 1) for rank in range(2)]
    for one in later:
        one.load_state_dict(saved)
        one.follow(4)
    assert read(later, range(5, 13)) == expected[4:]


REFUSED = {
    "[{global_batch_size: 2}]": "batch_schedule.0 (command line): has no length; valid",
    "[{steps: 1, tokens: 9, global_batch_size: 2}]": "batch_schedule.0 (command line): has two",
    "[{steps: 1, global_batch_size: 16}]": "batch_schedule.0.global_batch_size=16 (command line): "
    "is more than training.global_batch_size=8",
    "[{steps: 1, global_batch_size: 2, increment: 4}]": "batch_schedule.0.increment=4 (command "
    "line): must divide 6, the way from 2 to 8",
    "[{steps: 1, global_batch_size: 8, increment: 4}]": "batch_schedule.0.increment=4 (command "
    "line): has no effect",
    "[{steps: 1, global_batch_size: 0}]": "batch_schedule.0.global_batch_size=0 (command line): "
    "valid: a whole number from 1",
    "[{steps: 1}]": "batch_schedule.0.global_batch_size",
    "[{steps: 1, global_batch_size: 2}] training.global_batch_size=-1": "global_batch_size=-1 "
    "(command line): is the batch after training.batch_schedule",
}


@pytest.mark.parametrize("stages", REFUSED)
def test_schedules_that_are_refused(stages: str, forked: Callable, tmp_path: Path) -> None:
    first, bracket, more = stages.partition("]")
    words = ("training.global_batch_size=8", f"training.batch_schedule={first}{bracket}")
    done = forked("train", *words, *more.split(), "device=cpu", "run.dir=run", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert f"training.{REFUSED[stages]}" in done.stderr
    assert not list(tmp_path.iterdir())


RUN = (
    "training.global_batch_size=8",
    "training.batch_schedule=[{steps: 2, global_batch_size: 2},"
    "{tokens: 600, global_batch_size: 4, increment: 2}]",
    "training.seq_len=64",
    "lr_scheduler.stages=[{tokens: 700, to: 1}, {steps: 4, to: 0.1}]",
    "lr_scheduler.warmup_steps=200",
    "lr_scheduler.total_steps=null",
    "lr_scheduler.min_lr_factor=0",
    "checkpoint.enable=true",
    "checkpoint.interval=4",
    "checkpoint.last_save_model_only=false",
    "data.trace=true",
)
SIZES = [2, 2, 4, 4, 6, 8, 8, 8]


@pytest.mark.slow
def test_runs_resume_in_a_ramp_on_any_ranks(
    train: Callable, atom: Callable, tmp_path: Path
) -> None:
    """The same bits on the same ranks, and the same losses on twice as many; rates and tokens are
    those of the batches, and documents are told as they were read.
    """
    whole = train(tmp_path / "whole", *RUN, "training.steps=8")
    seen = [64 * sum(SIZES[: step + 1]) for step in range(8)]
    assert [row["tokens_seen"] for row in whole] == seen
    # 700 tokens are complete with step 4 (12 sequences of 64); the rate falls after it.
    peak = whole[3]["lr"]
    assert [row["lr"] / peak for row in whole] == pytest.approx(
        [0.25, 0.5, 0.75, 1, 1, 0.775, 0.55, 0.325]
    )
    train(tmp_path / "halves", *RUN, "training.steps=4")
    shutil.copytree(tmp_path / "halves", tmp_path / "two")
    halves = train(tmp_path / "halves", *RUN, "training.steps=8")
    kept = ("loss", "grad_norm", "lr", "data", "tokens_seen")
    assert [[row[k] for k in kept] for row in halves] == [[row[k] for k in kept] for row in whole]
    two = train(tmp_path / "two", *RUN, "training.steps=8", "parallelism=fsdp", "launch.ranks=2")
    assert [row["data"] for row in two] == [row["data"] for row in whole]
    assert [row["loss"] for row in two] == pytest.approx([r["loss"] for r in whole], abs=1e-6)
    lines = (tmp_path / "whole/logs/samples_rank_0.jsonl").read_text().splitlines()
    for step, *more in ((6,), (7, "--from-start")):
        told = atom("data", "at", "whole", "--step", str(step), "--json", *more, cwd=tmp_path)
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["lanes"] == json.loads(lines[step - 1])["lanes"]
    none = atom("data", "at", "whole", "--step", "3", "--sequence", "3", cwd=tmp_path)
    assert "the step has no sequence 3; valid: 4 to 7" in none.stderr


@pytest.mark.slow
def test_plans_and_dry_runs(atom: Callable, tmp_path: Path) -> None:
    """Time and tokens of a plan are the sums over the steps of each size."""
    model = ("tokenizer=bytes", "training.seq_len=128", "device=h100", "world_size=8")
    model += ("parallelism=fsdp", "launch.ranks=8", "training.local_batch_size=2")
    schedule = "training.batch_schedule=[{steps: 60, global_batch_size: 16, increment: 16}]"

    def plan(*words: str) -> dict[str, Any]:
        words = (*model, "training.steps=100", *words)
        done = atom("plan", "--json", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    ramp = plan("training.global_batch_size=64", schedule)
    each = {size: plan(f"training.global_batch_size={size}") for size in (16, 32, 48, 64)}
    assert ramp["batches"] == {"16": 20, "32": 20, "48": 20, "64": 40}
    assert ramp["tokens"] == 128 * (20 * (16 + 32 + 48) + 40 * 64)
    assert ramp["memory_gib"] == each[16]["memory_gib"] == each[64]["memory_gib"]
    assert ramp["step_seconds"] == each[64]["step_seconds"]
    hours = sum(
        each[size]["gpu_hours"] * count / 100
        for size, count in ((16, 20), (32, 20), (48, 20), (64, 40))
    )
    assert ramp["gpu_hours"] == pytest.approx(hours, rel=0.02)
    done = atom(
        *("train", *model, "dry_run=true", "training.steps=100", "training.global_batch_size=64"),
        schedule,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "16 from step 1, 32 from step 21, 48 from step 41, 64 from step 61" in done.stdout
    uneven = atom(
        *("train", *model, "dry_run=true", "training.global_batch_size=64"),
        "training.batch_schedule=[{steps: 60, global_batch_size: 24}]",
        cwd=tmp_path,
    )
    assert uneven.returncode == 2
    assert "has batches of 24 sequences, and each must be a multiple of 16" in uneven.stderr
    assert not list(tmp_path.iterdir())
