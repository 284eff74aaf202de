"""A mixture is exact in every step, and any step's place in every source is computed."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.data.mixing import Schedule, shares
from atom.plugin import Stage

WEIGHTS = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-9, 1e6), st.integers(1, 100).map(float)),
    min_size=1,
    max_size=12,
).filter(any)


def schedule(weights: list[list[float]], firsts: list[int], lanes: int, seed: int = 0) -> Schedule:
    names = [f"s{number}" for number in range(len(weights[0]))]
    stages = [
        Stage(name=f"stage {number}", step=first, weights=dict(zip(names, each, strict=True)))
        for number, (first, each) in enumerate(zip(firsts, weights, strict=True))
    ]
    return Schedule(names, stages, lanes, seed=seed)


@settings(deadline=None)
@given(WEIGHTS, st.integers(1, 300), st.integers(0, 10**9), st.integers(-5, 5))
def test_every_step_has_each_source_to_one_sequence(
    weights: list[float], lanes: int, step: int, seed: int
) -> None:
    mixed = schedule([weights], [0], lanes, seed)
    chosen = np.bincount(mixed.choices(step), minlength=len(weights)).tolist()
    assert chosen == mixed.counts(step)
    assert sum(chosen) == lanes
    for count, share in zip(chosen, shares(mixed.names, mixed.stages[0].weights), strict=True):
        assert abs(count - share * lanes) < 1
        assert share or not count


@settings(deadline=None, max_examples=60)
@given(WEIGHTS, st.integers(1, 40), st.integers(0, 120), st.lists(st.integers(1, 40), max_size=3))
def test_the_place_in_every_source_is_the_sum_of_the_steps_before(
    weights: list[float], lanes: int, step: int, lengths: list[int]
) -> None:
    firsts = np.cumsum([0, *lengths]).tolist()
    each = [weights[number % len(weights) :] + weights[: number % len(weights)]
            for number in range(len(firsts))]  # fmt: skip
    mixed = schedule(each, firsts, lanes)
    expected = np.zeros(len(weights), dtype=int)
    for before in range(step):
        expected += mixed.counts(before)
    found = [mixed.before(step, source) for source in range(len(weights))]
    assert found == expected.tolist()


def test_a_rare_source_comes_at_even_intervals() -> None:
    mixed = schedule([[0.999, 0.001]], [0], 8)
    steps = [step for step in range(20_000) if mixed.counts(step)[1]]
    assert len(steps) == 160
    assert set(np.diff(steps)) <= set(range(50, 150))
    for step in range(0, 20_000, 97):
        assert abs(mixed.before(step, 1) - Fraction(8 * step, 1000)) < 4


def test_lanes_get_every_source() -> None:
    mixed = schedule([[0.5, 0.3, 0.2]], [0], 16)
    chosen = np.array([mixed.choices(step) for step in range(400)])
    for source, share in enumerate((0.5, 0.3, 0.2)):
        assert np.all(np.abs((chosen == source).mean(axis=0) - share) < 0.12)


def test_a_place_far_away_is_computed_without_memory() -> None:
    weights = (np.arange(1000) % 37 + 1).astype(float).tolist()
    mixed = schedule([weights], [0], 4096)
    step = 10**8
    tracemalloc.start()
    before = [mixed.before(step, source) for source in range(100)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    before += [mixed.before(step, source) for source in range(100, 1000)]
    assert peak < 1 << 20
    assert sum(before) == step * 4096
    worst = max(
        abs(count - share * step * 4096)
        for count, share in zip(before, shares(mixed.names, mixed.stages[0].weights), strict=True)
    )
    assert worst < 20
