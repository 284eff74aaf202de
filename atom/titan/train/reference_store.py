"""Keep the log-probabilities of sequences under a run's initial weights.

A folder named by the digest of the weights has files of records: the digest of a sequence
(:func:`atom.data.numbering.digest`) and the sum of its log-probabilities. A file is complete or
absent, and is never changed, so that ranks and runs that begin anew share the folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from atom.io.files import is_regular, make_folder, read_bytes, write_bytes

_RECORD = np.dtype([("digest", "V16"), ("logprob", "<f8")])
_SUFFIX = ".references"
_MOST = 1 << 34
"""Bytes of a file."""


class ReferenceStore:
    """The references in a folder.

    Args:
        folder: it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[bytes, float] = {}
        self._new: dict[bytes, float] = {}
        self._read: set[str] = set()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, digest: bytes) -> float:
        return self._known[digest]

    def add(self, digest: bytes, logprob: float) -> None:
        """Add a reference, which :meth:`save` writes."""
        self._known[digest] = self._new[digest] = logprob

    def save(self) -> None:
        """Write the references that were added, as a file of their own."""
        if not self._new:
            return
        records = np.array(
            [(np.void(digest), logprob) for digest, logprob in self._new.items()], dtype=_RECORD
        ).tobytes()
        name = hashlib.blake2b(records, digest_size=16).hexdigest()
        make_folder(self.folder)
        write_bytes(self.folder / f"{name}{_SUFFIX}", records)
        self._read.add(name)
        self._new = {}

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
            records = np.frombuffer(content, dtype=_RECORD)
            self._known |= zip(
                (digest.tobytes() for digest in records["digest"]),
                records["logprob"].tolist(),
                strict=True,
            )
