"""The average is that of plain arithmetic: updates at an interval, in float32, after a start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from atom.errors import UserError
from atom_diagnostics.config import Ema
from atom_diagnostics.ema import MovingAverage
from atom_diagnostics.ema_steps import check


@torch.no_grad()
def begun(**config: Any) -> tuple[MovingAverage, Any]:
    """Return a callback at the start of a run of one weight."""
    training: Any = SimpleNamespace(model_parts=[nn.Linear(1, 1, bias=False)], step=0)
    average = MovingAverage(Ema(**config))
    average.on_start(training)
    average.on_gone_back(training)
    return average, training


@torch.no_grad()
def step(average: MovingAverage, training: Any, weight: float) -> float:
    """Do a step that ends with ``weight``; return the average."""
    training.step += 1
    training.model_parts[0].weight.fill_(weight)
    average.after_optimizer(training)
    return float(average.averages()[0])


def test_updates_begin_at_a_step_and_have_an_interval() -> None:
    average, training = begun(decay=0.75, start=2, interval=2)
    found = [step(average, training, float(number)) for number in (1, 2, 3, 4, 5, 6)]
    at_four = 0.75 * 2 + 0.25 * 4
    assert found == [1, 2, 2, at_four, at_four, 0.75 * at_four + 0.25 * 6]


def test_average_of_bfloat16_weights_is_in_float32() -> None:
    """Updates too small for bfloat16 add up."""
    average, training = begun(decay=0.999)
    training.model_parts[0].to(torch.bfloat16)
    expected = step(average, training, 1.0)
    for _ in range(5):
        expected = torch.tensor(expected).lerp(torch.tensor(2.0), 1 - 0.999).item()
        assert step(average, training, 2.0) == expected
    assert torch.tensor(expected).bfloat16().item() != expected


@pytest.mark.parametrize("loaded", [True, False])
@torch.no_grad()
def test_a_rollback_without_an_average_begins_with_the_weights(loaded: bool) -> None:
    average, training = begun(decay=0.5)
    step(average, training, 1.0)
    before = step(average, training, 3.0)
    if loaded:
        average.load_state_dict({})
    average.on_gone_back(training)
    assert float(average.averages()[0]) == (before if loaded else 3.0)
    average.on_gone_back(training)
    assert float(average.averages()[0]) == 3.0, "one loading is for one time"


def test_an_interval_without_an_update_is_refused() -> None:
    context: Any = SimpleNamespace(name="ema", steps=9)
    check(Ema(start=4, interval=5), context)
    with pytest.raises(UserError, match=r"nothing would be averaged.*valid: at most 5"):
        check(Ema(start=4, interval=6), context)
    one: Any = SimpleNamespace(name="ema", steps=1)
    check(Ema(), one)
