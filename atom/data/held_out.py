"""Hold documents out of training by a digest of their content.

A document is on one side whatever the run's seed, layout or order, in every epoch, and wherever its
content is found again. A document that a dataset yields in parts is trained on, as its parts
would not be on one side.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from atom.plugin import Document


@dataclass(frozen=True)
class Side:
    """One side of a split.

    Attributes:
        fraction: the fraction of documents that are held out, 0 to 1.
        held_out: whether this is the side of those documents; otherwise it is that of the others.
    """

    fraction: float
    held_out: bool = False

    def has(self, document: Document) -> bool:
        """Return whether a document is on this side."""
        return (self._share(document) < self.fraction) == self.held_out

    def _share(self, document: Document) -> float:
        """Return a number from 0 to 1, uniform over the contents of documents."""
        if not (document.starts and document.ends):
            return 1.0
        if document.tokens is not None:
            content = np.asarray(document.tokens).astype("<i8").tobytes()
        else:
            content = document.text.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(content, digest_size=8, person=b"held out").digest()
        return int.from_bytes(digest, "little") / 2**64
