"""Define what an objective makes of a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from atom.plugin.sources import Document

if TYPE_CHECKING:  # listing plugins imports no numpy
    import numpy.typing as npt
    import torch

__all__ = [
    "DocumentEncoder",
    "Example",
    "ExampleLoss",
    "Predictions",
    "Sums",
    "Teacher",
    "TokenLoss",
]


@dataclass(frozen=True)
class Example:
    """A document as tokens.

    Attributes:
        tokens: the ids: a one-dimensional array of integers.
        trained: for each id, whether the model is trained to predict it: an array of bool; None:
            all.
        begins: the index at which each further sequence begins, for an example of several
            sequences. Attention and positions do not cross them, and the first token of each is
            not predicted. Such an example is never cut.
    """

    tokens: npt.NDArray[Any]
    trained: npt.NDArray[Any] | None = None
    begins: tuple[int, ...] = ()


class DocumentEncoder(Protocol):
    """A conversion of documents to tokens. ATOM calls it from one thread at a time."""

    def encode(self, document: Document) -> Example | None:
        """Return a document as tokens; None if nothing of it fits a sequence, which is counted.

        Raises:
            atom.errors.UserError: the document has not what the objective needs; its id is named.
        """
        ...


@dataclass(frozen=True)
class Sums:
    """The sequences of N examples, K each: tensors [N, K] on the run's device.

    Attributes:
        logprobs: sum of the log-probabilities of the predicted tokens, float64.
        tokens: number of the predicted tokens.
        reference: the sums under the model's initial weights; None if the objective declares no
            ``reference``.
    """

    logprobs: torch.Tensor
    tokens: torch.Tensor
    reference: torch.Tensor | None


class ExampleLoss(Protocol):
    """A loss of examples that depends on their sequences' log-probabilities alone."""

    def __call__(self, sums: Sums) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return the loss of each example [N], and values to log [N] by name.

        ATOM averages both over the examples of the global batch. The loss of an example depends on
        its own row alone, and is differentiable in ``logprobs``.
        """
        ...


@dataclass(frozen=True)
class Teacher:
    """A model that the run's model is trained to imitate.

    Attributes:
        folder: of a run, an export, or a model in Hugging Face's format.
        top: number of likeliest ids that are kept for each token.
        temperature: the teacher's logits are divided by it.
    """

    folder: Path
    top: int
    temperature: float = 1.0


@dataclass(frozen=True)
class Predictions:
    """The predictions of N tokens, with a teacher's K likeliest ids: tensors on the run's device.

    Attributes:
        logits: of the model, float32: [N, V].
        labels: the tokens' ids: [N].
        teacher_ids: [N, K].
        teacher_logprobs: their log-probabilities among all ids, at the teacher's temperature:
            [N, K].
    """

    logits: torch.Tensor
    labels: torch.Tensor
    teacher_ids: torch.Tensor
    teacher_logprobs: torch.Tensor


class TokenLoss(Protocol):
    """A loss of tokens against the predictions of a teacher."""

    def __call__(self, predictions: Predictions) -> torch.Tensor:
        """Return the loss of each token: [N]. ATOM averages it over those of the global batch."""
        ...
