"""Define what an objective makes of a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from atom.plugin.sources import Document

if TYPE_CHECKING:  # listing plugins imports no numpy
    import numpy.typing as npt

__all__ = ["DocumentEncoder", "Example"]


@dataclass(frozen=True)
class Example:
    """A document as tokens.

    Attributes:
        tokens: the ids: a one-dimensional array of integers.
        trained: for each id, whether the model is trained to predict it: an array of bool; None:
            all.
    """

    tokens: npt.NDArray[Any]
    trained: npt.NDArray[Any] | None = None


class DocumentEncoder(Protocol):
    """A conversion of documents to tokens. ATOM calls it from one thread at a time."""

    def encode(self, document: Document) -> Example | None:
        """Return a document as tokens; None if nothing of it fits a sequence, which is counted.

        Raises:
            atom.errors.UserError: the document has not what the objective needs; its id is named.
        """
        ...
