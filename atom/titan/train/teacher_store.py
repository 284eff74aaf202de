"""Keep the likeliest ids of a teacher, and their log-probabilities, for each predicted token.

A folder named by the digest of the teacher has files, each with an index of documents (their
digests, :func:`atom.data.numbering.digest`, and numbers of tokens) and two arrays. A file is
complete or absent, and is never changed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atom.io.files import is_regular, make_folder, read_bytes, write_bytes

_INDEX = np.dtype([("digest", "V16"), ("tokens", "<i8")])
_SUFFIX = ".predictions"
_MOST = 1 << 36
"""Bytes of a file."""

Row = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""Ids and log-probabilities of a document's N predicted tokens: [N, K]."""


class TeacherStore:
    """The predictions in a folder, in memory.

    Args:
        folder: it need not exist.
        top: K.
    """

    def __init__(self, folder: Path, top: int) -> None:
        self.folder = folder
        self._top = top
        self._known: dict[bytes, Row] = {}
        self._new: list[bytes] = []
        self._read: set[str] = set()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, digest: bytes) -> Row:
        return self._known[digest]

    def add(
        self, digest: bytes, ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32]
    ) -> None:
        """Add the predictions of a document, which :meth:`save` writes."""
        if digest not in self._known:
            self._known[digest] = (ids.astype("<i4"), logprobs.astype("<f4"))
            self._new.append(digest)

    def save(self) -> None:
        """Write the predictions that were added, as a file of their own."""
        if not self._new:
            return
        rows = [self._known[digest] for digest in self._new]
        index = np.array(
            [(np.void(digest), len(ids)) for digest, (ids, _) in zip(self._new, rows, strict=True)],
            dtype=_INDEX,
        )
        content = b"".join(
            (
                len(index).to_bytes(8, "little"),
                index.tobytes(),
                np.concatenate([ids for ids, _ in rows]).tobytes(),
                np.concatenate([logprobs for _, logprobs in rows]).tobytes(),
            )
        )
        name = hashlib.blake2b(content, digest_size=16).hexdigest()
        make_folder(self.folder)
        write_bytes(self.folder / f"{name}{_SUFFIX}", content)
        self._read.add(name)
        self._new = []

    def load(self) -> None:
        """Read what this and other ranks have written; a damaged file is left out."""
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            name = path.name.removesuffix(_SUFFIX)
            if name in self._read or not is_regular(path):
                continue
            # So much is allocated to read into.
            most = min(_MOST, path.lstat().st_size)
            content = read_bytes(path, most=most, below=self.folder)
            if hashlib.blake2b(content, digest_size=16).hexdigest() != name:
                continue
            self._read.add(name)
            self._take(content)

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
