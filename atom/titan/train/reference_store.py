"""Keep the log-probabilities of sequences under a run's initial weights.

A folder named by the digest of the weights has files of records: the digest of a sequence and the
sum of its log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from atom.titan.train.digest_store import DigestStore

_RECORD = np.dtype([("digest", "V16"), ("logprob", "<f8")])


class ReferenceStore(DigestStore[float]):
    """The references in a folder.

    Args:
        folder: it need not exist.
    """

    suffix = ".references"
    most = 1 << 34

    def add(self, digest: bytes, logprob: float) -> None:
        """Add a reference, which :meth:`save` writes."""
        self._known[digest] = logprob
        self._new[digest] = None

    def _content(self, digests: Iterable[bytes]) -> bytes:
        records = [(np.void(digest), self._known[digest]) for digest in digests]
        return np.array(records, dtype=_RECORD).tobytes()

    def _take(self, content: bytes) -> None:
        records = np.frombuffer(content, dtype=_RECORD)
        self._known |= zip(
            (digest.tobytes() for digest in records["digest"]),
            records["logprob"].tolist(),
            strict=True,
        )
