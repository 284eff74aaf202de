"""Compute a seeded pseudo-random order of any number of documents.

Position i of an epoch is computed, not looked up, so that an order of 10¹⁰ documents needs no
memory, and reading can begin anywhere. Grain's ``index_shuffle`` (0.2.18) does the same and was
weighed: it takes seeds of 32 bits, one index per call (3.8 µs, 0.1 µs here), and comes with
protobuf, etils and array-record; no version promises that the next one gives the same order.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

NEWEST = 2
"""The order of new runs. A run keeps the one that it began with (``data.order``):

1. sorts random numbers, whatever the number of documents;
2. does so for at most :data:`SORTED` documents, and computes a larger order.
"""

SORTED = 1 << 16
"""Most documents that order 2 sorts: their permutation is perfectly uniform, costs milliseconds and
fits into 128 KiB; networks over so few documents are not as random."""

MOST = 1 << 62

_ROUNDS = 8
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""The multipliers of splitmix64's finalizer (Steele et al., 2014)."""

Indices = npt.NDArray[np.int64]


class Order:
    """The order of the documents of one epoch.

    Args:
        count: number of documents, at most 2⁶².
        seed: any integer.
        epoch: number of the epoch.
        version: 1 or 2, see :data:`NEWEST`.
    """

    def __init__(self, count: int, seed: int, epoch: int, version: int = NEWEST) -> None:
        if not 0 <= count <= MOST:
            raise ValueError(f"{count} documents; valid: 0 to 2**62")
        self.count = count
        self._sorted = permutation(count, seed, epoch) if version == 1 or count <= SORTED else None
        if self._sorted is None:
            self._network = _Network(count, f"{seed} {epoch}")

    def at(self, positions: npt.ArrayLike) -> Indices:
        """Return the documents at ``positions``, each from 0 to ``count`` - 1."""
        wanted = np.asarray(positions, dtype=np.int64)
        if self._sorted is not None:
            return self._sorted[wanted].astype(np.int64)
        return self._network.at(wanted)


class _Network:
    """A keyed bijection of 0 to ``count`` - 1.

    A Feistel network permutes the 2ᵇ numbers below the next power of two. A result that is not
    below ``count`` is permuted again, until one is (Black and Rogaway, 2002: "cycle walking"); that
    takes less than two rounds in the mean.
    """

    def __init__(self, count: int, key: str) -> None:
        bits = max((count - 1).bit_length(), 2)
        self._count = np.uint64(count)
        self._widths = bits - bits // 2, bits // 2
        digest = hashlib.shake_256(f"order 2 {key}".encode()).digest(8 * _ROUNDS)
        self._keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def at(self, positions: Indices) -> Indices:
        values = positions.astype(np.uint64)
        outside = np.arange(values.size)
        flat = values.reshape(-1)
        while outside.size:
            flat[outside] = walked = self._once(flat[outside])
            outside = outside[walked >= self._count]
        return flat.reshape(values.shape).astype(np.int64)

    def _once(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left_bits, right_bits = self._widths
        left, right = values >> np.uint64(right_bits), values & _mask(right_bits)
        for key in self._keys:
            mixed = right ^ key
            for factor, shift in zip(_FACTORS, (30, 27), strict=True):
                mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
            # The high bits of a product depend on all bits of its factors.
            left, right = right, left ^ (mixed >> np.uint64(64 - left_bits))
            left_bits, right_bits = right_bits, left_bits
        combined: npt.NDArray[np.uint64] = (left << np.uint64(right_bits)) | right
        return combined


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


@lru_cache(maxsize=4)  # lanes that end an epoch at different times need two of them
def permutation(count: int, seed: int, epoch: int) -> npt.NDArray[np.unsignedinteger]:
    """Return the numbers 0 to ``count`` - 1 in the order of epoch ``epoch``, from random numbers
    that are sorted.

    Every machine and version of numpy gives the same order: numpy guarantees that for the raw
    output of a bit generator only.
    """
    key = hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:16]
    numbers = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    smallest = np.min_scalar_type(count)  # usually half the memory
    order: npt.NDArray[np.unsignedinteger] = np.argsort(numbers, kind="stable").astype(smallest)
    order.setflags(write=False)
    return order
