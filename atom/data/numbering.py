"""Number labels: each predicted token tells which sequence of the step it belongs to.

A loss over whole sequences (:class:`atom.plugin.ExampleLoss`) needs the sum of log-probabilities of
each. The number is in the upper half of a label, so that it goes wherever the label goes: to shards
of a sequence, micro-batches, pipeline stages and chunks.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

SHIFT = 32
"""Bits of a label that hold the id."""

_IDS = (1 << SHIFT) - 1


def numbered(labels: Any, numbers: Any) -> Any:
    """Return labels with numbers added to the ones that they have; before the first, -1.

    Args:
        labels: ids, or a negative number where nothing is predicted: an array or a tensor.
        numbers: one, or as many as labels.
    """
    return labels + (labels >= 0) * (numbers << SHIFT)


def ids(labels: Any) -> Any:
    """Return labels without numbers."""
    here = labels >= 0
    return here * (labels & _IDS) + ~here * labels


def numbers(labels: Any) -> Any:
    """Return the number of each label, from 0; -1 for one without."""
    return (labels >= 0) * (labels >> SHIFT) - 1


def digest(tokens: Any, trained: Any | None) -> bytes:
    """Return a digest of 128 bits of a sequence, and of which tokens are predicted."""
    found = hashlib.blake2b(len(tokens).to_bytes(8, "little"), digest_size=16)
    found.update(np.asarray(tokens).astype("<i4").tobytes())
    # The first token is never predicted.
    predicted = np.ones(len(tokens) - 1, dtype=np.bool_) if trained is None else trained[1:]
    found.update(np.packbits(predicted).tobytes())
    return found.digest()
