"""Keep the likeliest ids of a teacher, and their log-probabilities, for each predicted token.

A folder named by the digest of the teacher has files, each with an index of documents (their
digests and numbers of tokens) and two arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atom.titan.train.digest_store import DigestStore

_INDEX = np.dtype([("digest", "V16"), ("tokens", "<i8")])

Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""Ids and log-probabilities of a document's N predicted tokens: [N, K]."""


class TeacherStore(DigestStore[Row]):
    """The predictions in a folder, in memory.

    Args:
        folder: it need not exist.
        top: K.
    """

    suffix = ".predictions"
    most = 1 << 36

    def __init__(self, folder: Path, top: int) -> None:
        super().__init__(folder)
        self._top = top

    def add(
        self, digest: bytes, ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32]
    ) -> None:
        """Add the predictions of a document, which :meth:`save` writes."""
        if digest not in self._known:
            self._known[digest] = (ids.astype("<i4"), logprobs.astype("<f4"))
            self._new[digest] = None

    def _content(self, digests: Iterable[bytes]) -> bytes:
        digests = list(digests)
        rows = [self._known[digest] for digest in digests]
        index = np.array(
            [(np.void(digest), len(ids)) for digest, (ids, _) in zip(digests, rows, strict=True)],
            dtype=_INDEX,
        )
        return b"".join(
            (
                len(index).to_bytes(8, "little"),
                index.tobytes(),
                np.concatenate([ids for ids, _ in rows]).tobytes(),
                np.concatenate([logprobs for _, logprobs in rows]).tobytes(),
            )
        )

    def _take(self, content: bytes) -> None:
        count = int.from_bytes(content[:8], "little")
        index = np.frombuffer(content, dtype=_INDEX, count=count, offset=8)
        begin = 8 + index.nbytes
        total = int(index["tokens"].sum())
        ids = np.frombuffer(content, "<i4", total * self._top, begin).reshape(total, self._top)
        logprobs = np.frombuffer(content, "<f4", total * self._top, begin + ids.nbytes)
        logprobs = logprobs.reshape(total, self._top)
        at = 0
        for digest, tokens in zip(index["digest"], index["tokens"].tolist(), strict=True):
            self._known[digest.tobytes()] = ids[at : at + tokens], logprobs[at : at + tokens]
            at += tokens
