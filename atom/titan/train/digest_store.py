"""Keep computed records in files that are named by the digest of their content.

A file is complete or absent, and is never changed, so that ranks and runs that begin anew share the
folder.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from atom.io.files import is_regular, make_folder, read_bytes, write_bytes

Value = TypeVar("Value")


class DigestStore(Generic[Value]):
    """The records in a folder, in memory, by the digest of a sequence
    (:func:`atom.data.numbering.digest`).

    Args:
        folder: it need not exist.
    """

    suffix: str
    """Suffix of the files."""

    most: int
    """Bytes of a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[bytes, Value] = {}
        self._new: dict[bytes, None] = {}
        self._read: set[str] = set()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._known

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, digest: bytes) -> Value:
        return self._known[digest]

    @abstractmethod
    def _content(self, digests: Iterable[bytes]) -> bytes:
        """Return the records of ``digests`` as a file has them."""

    @abstractmethod
    def _take(self, content: bytes) -> None:
        """Add the records of a file."""

    def save(self) -> None:
        """Write the records that were added, as a file of their own."""
        if not self._new:
            return
        content = self._content(self._new)
        name = hashlib.blake2b(content, digest_size=16).hexdigest()
        make_folder(self.folder)
        write_bytes(self.folder / f"{name}{self.suffix}", content)
        self._read.add(name)
        self._new = {}

    def load(self) -> None:
        """Read what this and other ranks have written; a damaged file is left out."""
        for path in sorted(self.folder.glob(f"*{self.suffix}")):
            name = path.name.removesuffix(self.suffix)
            if name in self._read or not is_regular(path):
                continue
            # So much is allocated to read into.
            most = min(self.most, path.lstat().st_size)
            content = read_bytes(path, most=most, below=self.folder)
            if hashlib.blake2b(content, digest_size=16).hexdigest() != name:
                continue
            self._read.add(name)
            self._take(content)
