"""The order of a pass, and how it is dealt out to lanes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from atom.plugin import Document


class Documents(Protocol):
    """Documents that can be had in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Document: ...


def deal(
    documents: Documents, lane: int, lanes: int, *, seed: int, epoch: int, start: int
) -> Iterator[Document]:
    """Yield documents ``start``, ``start + 1``, … of ``lane`` in the pass ``epoch``.

    A pass is a permutation of the documents, and lane i takes its i-th document and every
    ``lanes``-th after it. If there are n < ``lanes`` documents, lane i takes document i % n of
    the permutation alone, so that every lane has something to read.
    """
    count = len(documents)
    if count == 0:
        return
    for index in permutation(count, seed, epoch)[lane % count :: lanes][start:]:
        yield documents[int(index)]


@lru_cache(maxsize=4)  # lanes that end a pass at different times need two of them for a while
def permutation(count: int, seed: int, epoch: int) -> npt.NDArray[np.unsignedinteger]:
    """Return the numbers 0 to ``count`` - 1 in the order of the pass ``epoch``.

    Every machine and version of numpy gives the same: numpy promises it of the raw numbers of a
    bit generator, and of nothing that is made of them.
    """
    key = hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:16]
    numbers = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    smallest = np.min_scalar_type(count)  # most often half the memory
    order: npt.NDArray[np.unsignedinteger] = np.argsort(numbers, kind="stable").astype(smallest)
    order.setflags(write=False)
    return order
