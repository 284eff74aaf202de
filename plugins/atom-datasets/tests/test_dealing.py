"""Every document in one lane, in an order that depends on the seed and the pass."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from atom.plugin import Document
from atom_datasets.dealing import deal, permutation

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
    script = "from atom_datasets.dealing import permutation as p; print(p(500, 7, 1).tolist())"
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{permutation(500, 7, 1).tolist()}\n"


def test_an_order_is_drawn_once() -> None:
    assert permutation(1000, 1, 2) is permutation(1000, 1, 2)


FOR_EVER = [
    [10, 9, 3, 5, 4, 7, 2, 1, 6, 0, 8, 11],
    [8, 2, 5, 1, 0, 3, 4, 11, 7, 10, 9, 6],
]
