"""What is a fault of a step, and how many are put up with."""

from __future__ import annotations

import math

import pytest
import torch

from atom.recipe.sections import Faults
from atom.titan.train.anomaly import Anomalies
from atom.titan.train.replicas import checksum


def judged(window: int = 8, **settings) -> Anomalies:
    """Return anomalies whose history is full: losses of 2.0 to 2.07, norms of 1."""
    anomalies = Anomalies(Faults(window=window, spike="skip", spike_threshold=5, **settings))
    for step in range(window):
        assert anomalies.judge(step, 2 + step / 100, 1.0) is None
    return anomalies


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite(value: float) -> None:
    anomalies = Anomalies(Faults())
    for loss, norm, name in ((value, 1.0, "loss"), (1.0, value, "gradient norm")):
        fault = anomalies.judge(3, loss, norm)
        assert fault is not None
        assert fault.kind == "non_finite"
        assert fault.reason == f"the {name} of step 3 is {value}"


def test_spike_is_measured_by_median_and_its_deviation() -> None:
    # median 2.035, median absolute deviation 0.02: up to 2.035 + 5 * 1.4826 * 0.02 = 2.183
    assert judged().judge(9, 2.18, 1.0) is None
    fault = judged().judge(9, 2.19, 1.0)
    assert fault is not None
    assert fault.kind == "spike"
    assert "above 2.183 (the median of the last 8 steps is 2.035)" in fault.reason
    assert judged().judge(9, 0.1, 1.0) is None  # a fall is none


def test_norms_that_never_moved_leave_some_room() -> None:
    assert judged().judge(9, 2.0, 1.05) is None
    assert judged().judge(9, 2.0, 1.06) is not None


def test_a_fault_is_no_measure_for_the_next() -> None:
    anomalies = judged()
    assert all(anomalies.judge(step, 50.0, 1.0) for step in range(9, 30))


def test_no_spike_before_the_window_is_full() -> None:
    anomalies = Anomalies(Faults(window=8, spike="skip"))
    for step in range(7):
        anomalies.judge(step, 2.0, 1.0)
    assert anomalies.judge(7, 50.0, 1.0) is None


def test_budget_is_of_a_window() -> None:
    anomalies = Anomalies(Faults(window=10, budget=2))
    assert all(anomalies.within_budget(step) for step in (1, 5, 12))
    assert not anomalies.within_budget(14)  # with those at 5 and 12


def test_state_goes_on() -> None:
    before = judged(budget=1)
    after = Anomalies(Faults(window=8, spike="skip", spike_threshold=5, budget=1))
    before.within_budget(8)
    after.load_state_dict(before.state_dict())
    assert after.judge(9, 5.0, 1.0) == before.judge(9, 5.0, 1.0) is not None
    assert not after.within_budget(9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_checksum_sees_any_bit_and_any_exchange(dtype: torch.dtype) -> None:
    tensor = torch.randn(5, 7, generator=torch.manual_seed(0)).to(dtype)
    whole = checksum(tensor).item()
    assert checksum(tensor.clone()).item() == whole
    number = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    for bit in range(8 * tensor.element_size()):
        flipped = tensor.clone()
        one = torch.tensor(1).bitwise_left_shift(bit).to(number)
        flipped.view(-1).view(number)[11] ^= one
        assert checksum(flipped).item() != whole, bit
    assert checksum(tensor.flip(0)).item() != whole
