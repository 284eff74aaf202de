"""Shuffle the documents of an epoch and distribute them over lanes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from atom.plugin import Document


class Documents(Protocol):
    """Documents with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Document: ...


def deal(
    documents: Documents, lane: int, lanes: int, *, seed: int, epoch: int, start: int
) -> Iterator[Document]:
    """Yield documents ``start``, ``start + 1``, … of ``lane`` in epoch ``epoch``.

    An epoch is a permutation of the documents, and lane i takes its i-th document and every
    ``lanes``-th after it. If there are n < ``lanes`` documents, lane i takes document i % n of
    the permutation only, so that every lane has something to read.
    """
    count = len(documents)
    if count == 0:
        return
    for index in permutation(count, seed, epoch)[lane % count :: lanes][start:]:
        yield documents[int(index)]


@lru_cache(maxsize=4)  # lanes that end an epoch at different times need two of them
def permutation(count: int, seed: int, epoch: int) -> npt.NDArray[np.unsignedinteger]:
    """Return the numbers 0 to ``count`` - 1 in the order of epoch ``epoch``.

    Every machine and version of numpy gives the same order: numpy guarantees that for the raw
    output of a bit generator only.
    """
    key = hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:16]
    numbers = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    smallest = np.min_scalar_type(count)  # usually half the memory
    order: npt.NDArray[np.unsignedinteger] = np.argsort(numbers, kind="stable").astype(smallest)
    order.setflags(write=False)
    return order
