"""Every document in one lane, in an order that depends on the seed and the pass."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from itertools import chain, combinations, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atom.data.dealing import deal, indices
from atom.data.order import MOST, NEWEST, SORTED, Order, permutation
from atom.plugin import Document

SEEDS = st.integers(-(2**70), 2**70)


class Numbered:
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Document:
        assert type(index) is int
        assert 0 <= index < self._count
        return Document(text="", id=str(index))


def ids(
    count: int, lane: int, lanes: int, seed: int = 0, epoch: int = 0, start: int = 0
) -> list[int]:
    dealt = deal(Numbered(count), lane, lanes, seed=seed, epoch=epoch, start=start)
    return [int(document.id) for document in dealt]


@given(st.integers(0, 300), SEEDS, st.integers(0, 5))
def test_a_pass_has_every_document_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(count, seed, epoch)) == list(range(count))


@given(st.integers(1, 200), st.integers(1, 20), SEEDS, st.integers(0, 3), st.integers(0, 9))
def test_lanes_share_a_pass_out(count: int, lanes: int, seed: int, epoch: int, start: int) -> None:
    dealt = [ids(count, lane, lanes, seed, epoch) for lane in range(lanes)]
    if count >= lanes:
        assert sorted(chain.from_iterable(dealt)) == list(range(count))
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    else:
        order = permutation(count, seed, epoch).tolist()
        assert dealt == [[order[lane % count]] for lane in range(lanes)]
    for lane in range(lanes):
        assert ids(count, lane, lanes, seed, epoch, start) == dealt[lane][start:]


def test_no_documents_no_lane() -> None:
    assert ids(0, 2, 5) == []


def test_seeds_and_passes_give_other_orders() -> None:
    orders = [(seed, epoch) for seed in (-1, 0, 1, 10) for epoch in (0, 1, 2)]
    assert len({tuple(permutation(50, *order)) for order in orders}) == len(orders)


def test_the_order_is_the_same_for_ever() -> None:
    # A change here sends every run that resumes to other documents.
    assert permutation(12, 0, 0).tolist() == FOR_EVER[0]
    assert permutation(12, -5, 3).tolist() == FOR_EVER[1]


def test_the_order_is_the_same_in_another_process() -> None:
    script = "from atom.data.order import permutation as p; print(p(500, 7, 1).tolist())"
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{permutation(500, 7, 1).tolist()}\n"


def test_an_order_is_drawn_once() -> None:
    assert permutation(1000, 1, 2) is permutation(1000, 1, 2)


# ---------------------------------------------------------------------------- a computed order


@settings(deadline=None, max_examples=30)
@given(st.integers(SORTED + 1, 1 << 18), SEEDS, st.integers(0, 5))
def test_a_computed_order_has_every_document_once(count: int, seed: int, epoch: int) -> None:
    computed = Order(count, seed, epoch).at(np.arange(count))
    assert np.array_equal(np.sort(computed), np.arange(count))


@settings(deadline=None, max_examples=60)
@given(st.integers(SORTED + 1, MOST), SEEDS, st.data())
def test_a_position_does_not_depend_on_the_others_computed_with_it(
    count: int, seed: int, data: st.DataObject
) -> None:
    order = Order(count, seed, 0)
    positions = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20, unique=True))
    together = order.at(positions).tolist()
    assert together == [int(order.at(position)) for position in positions]
    assert len(set(together)) == len(positions)
    assert all(0 <= index < count for index in together)


@pytest.mark.parametrize("count", [SORTED + 1, 100_003, (1 << 17) + 1, 1 << 20, 10**10])
def test_a_computed_order_is_random(count: int) -> None:
    """Document numbers are uniform over 64 x 64 boxes of (position, document): chi-squared within
    five standard deviations, with the seed, the epoch, and neighbours as little related."""
    positions = np.linspace(0, count - 1, SORTED).astype(np.int64)
    orders = [Order(count, *which).at(positions) for which in ((0, 0), (1, 0), (0, 1))]
    pairs = [(positions, orders[0]), *combinations(orders, 2), (orders[0][:-1], orders[0][1:])]
    for first, second in pairs:
        boxes, _, _ = np.histogram2d(first, second, bins=64, range=[[0, count]] * 2)
        expected = len(first) / 64**2
        freedom = 64**2 - 1
        chi2 = ((boxes - expected) ** 2 / expected).sum()
        # Positions are evenly spaced and documents not repeated, so that it can be a bit smaller.
        assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_small_orders_of_both_versions_are_the_same() -> None:
    for count in (1, 2, 1000, SORTED):
        one, two = (Order(count, 3, 1, version).at(np.arange(count)) for version in (1, 2))
        assert np.array_equal(one, two)


def test_the_computed_order_is_the_same_for_ever() -> None:
    # A change here sends every run that resumes to other documents.
    assert Order(10**10, 0, 0).at(np.arange(4)).tolist() == COMPUTED[0]
    assert Order(100_003, -5, 3).at(np.arange(4)).tolist() == COMPUTED[1]


def test_a_large_order_needs_no_memory() -> None:
    tracemalloc.start()
    dealt = list(islice(indices(10**10, 5, 4096, 0, 0, 10**6, NEWEST), 10_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(dealt)) == 10_000
    assert peak < 4 << 20


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.integers(SORTED + 1, 90_000), st.integers(1, 9), st.integers(0, 200))
def test_lanes_share_out_a_computed_order(count: int, lanes: int, start: int) -> None:
    dealt = [list(indices(count, lane, lanes, 4, 1, 0, NEWEST)) for lane in range(lanes)]
    assert sorted(chain.from_iterable(dealt)) == list(range(count))
    assert list(indices(count, lanes - 1, lanes, 4, 1, start, NEWEST)) == dealt[-1][start:]


FOR_EVER = [
    [10, 9, 3, 5, 4, 7, 2, 1, 6, 0, 8, 11],
    [8, 2, 5, 1, 0, 3, 4, 11, 7, 10, 9, 6],
]

COMPUTED = [
    [5790911687, 8540922891, 6455102108, 7595422364],
    [5639, 8475, 99204, 42774],
]
