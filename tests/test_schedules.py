"""Stages of the learning rate: the rate of every step, what is refused, and resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_configs import section_run

from atom.recipe.batches import Batches
from atom.recipe.schedules import phases, rate
from atom.titan.optim.rates import EndingLRSchedulers


def used(config: EndingLRSchedulers.Config, steps: int, training_steps: int) -> list[float]:
    """The rates that torch's scheduler sets, of a peak of 2."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    built = config.build(optimizers=[optimizer], training_steps=training_steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        built.step()
    return found


@pytest.mark.parametrize("kind", ["linear", "sqrt", "cosine"])
@pytest.mark.parametrize("least", [0.0, 0.1])
@pytest.mark.parametrize(
    ("warmup", "ratio"), [(3, 0.25), (0, 0.5), (3, None), (5, 0.0), (30, None)]
)
def test_stages_are_torchtitans_schedule(
    kind: str, least: float, warmup: int, ratio: float | None
) -> None:
    """So is what a dry run draws of a run without stages."""
    section = {"warmup_steps": warmup, "decay_ratio": ratio, "decay_type": kind}
    section |= {"min_lr_factor": least, "total_steps": 12}
    expected = used(EndingLRSchedulers.Config(**section), 20, 99)
    drawn = phases(section_run(lr_scheduler=section), Batches((), 1))
    assert [2 * rate(drawn, step) for step in range(1, 21)] == pytest.approx(expected, abs=1e-12)
    warm = min(warmup, 12)
    decay = 12 - warm if ratio is None else round(12 * ratio)
    stages: list[dict[str, Any]] = [
        {"steps": warm, "to": 1.0},
        {"steps": 12 - warm - decay},
        {"steps": decay, "to": least, "curve": kind},
    ]
    if not warm:
        stages[:2] = [{"steps": 12 - decay, "to": 1.0, "curve": "constant"}]
    stages = [stage for stage in stages if stage["steps"]]
    made = phases(section_run(lr_scheduler={"stages": stages}), Batches((), 1))
    found = used(EndingLRSchedulers.Config(phases=made), 20, 99)
    assert found == pytest.approx(expected, abs=1e-12)


WARM = {"steps": 2, "to": 1}
RATES: dict[str, tuple[list[dict[str, Any]], list[float]]] = {
    "constant": ([{"to": 1, "curve": "constant"}], [1] * 6),
    "inverse square root": (
        [WARM, {"curve": "inverse_sqrt"}],
        [0.5, 1, *(math.sqrt(2 / step) for step in range(3, 7))],
    ),
    "piecewise constant": (
        [{"steps": n, "to": to, "curve": "constant"} for n, to in ((2, 1), (3, 0.5), (9, 0.1))],
        [1, 1, 0.5, 0.5, 0.5, 0.1],
    ),
    "in tokens, rounded up": (
        [{"tokens": 150, "to": 1}, {"tokens": 200, "to": 0.5}],
        [0.5, 1, 1, 0.75, 0.5, 0.5],
    ),
    "two peaks": (
        [WARM, {"steps": 2, "to": 0.5, "curve": "cosine"}, {"steps": 2, "to": 2}],
        [0.5, 1, 1, 0.75, 1.25, 2],
    ),
    "held": ([WARM, {"steps": 1, "to": 0.25}], [0.5, 1, 1, 0.25, 0.25, 0.25]),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_of_stages(name: str) -> None:
    """A rise has its final rate at its last step, a fall after it; a step has 100 tokens."""
    stages, expected = RATES[name]
    run = section_run(lr_scheduler={"stages": stages}, training={"steps": 6})
    made = phases(run, Batches((), 10, 10))
    assert [rate(made, step) for step in range(1, 7)] == pytest.approx(expected, abs=1e-12)


REFUSED = {
    "[{steps: 1, tokens: 5, to: 1}]": "stages.0.tokens=5 (command line): is a second length",
    "[{to: 1}, {steps: 3}]": "stages.0 (command line): has no length",
    "[{steps: 5, to: 1}, {to: 0}]": "stages.1 (command line): has no steps",
    "[{curve: inverse_sqrt}]": "stages.0.curve=inverse_sqrt (command line): falls from",
    "[{steps: 1, to: 1}, {to: 0, curve: inverse_sqrt}]": "stages.1.to=0.0 (command line): has no",
    "[{steps: 1, to: 1}, {curve: cosine}]": "stages.1.curve=cosine (command line): has no effect",
    "[{steps: 1}]": "stages.0.to=null (command line): the learning rate is 0 throughout",
    "[{steps: 1, to: 1}, {steps: 2, to: 0}]": "stages (command line): end at step 3 with a",
    "[{steps: 1, to: -1}]": "stages.0.to=-1 (command line): valid: a number from 0 up",
    "[{steps: 1, too: 1}]": "stages.0.too=1 (command line): too is no key here",
    "[{to: 1}] lr_scheduler.decay_type=cosine": "decay_type=cosine (command line): has no effect "
    "with lr_scheduler.stages",
}


@pytest.mark.parametrize("stages", REFUSED)
def test_stages_that_are_refused(stages: str, forked: Callable, tmp_path: Path) -> None:
    first, bracket, more = stages.partition("]")
    words = ("training.steps=5", f"lr_scheduler.stages={first}{bracket}", *more.split())
    done = forked("train", *words, "device=cpu", "run.dir=run", cwd=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert f"lr_scheduler.{REFUSED[stages]}" in done.stderr
    assert not list(tmp_path.iterdir())


STAGES = "lr_scheduler.stages=[{tokens: 512, to: 1}, {steps: 2, to: 0.5}, {curve: inverse_sqrt}]"


@pytest.mark.slow
def test_a_run_with_stages_resumes(train: Callable, tmp_path: Path) -> None:
    """With the same bits; the open stage ends with the run, and that is all it says of its end."""
    # The defaults of the other keys, which the fixture sets.
    others = ("warmup_steps=200", "total_steps=null", "min_lr_factor=0")
    stages = (STAGES, *(f"lr_scheduler.{key}" for key in others))
    whole = train(tmp_path / "whole", "training.steps=6", *stages)
    train(tmp_path / "halves", "training.steps=4", *stages)
    halves = train(tmp_path / "halves", "training.steps=6", *stages)
    assert [(row["loss"], row["lr"]) for row in whole] == [
        (row["loss"], row["lr"]) for row in halves
    ]
