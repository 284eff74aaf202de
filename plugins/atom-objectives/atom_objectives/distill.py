"""``distill``: imitate a teacher's predictions of the answers of conversations.

Knowledge distillation as of Hinton et al., 2015 (arXiv 1503.02531): the model is trained on the
Kullback-Leibler divergence of its predictions from the teacher's, both at a temperature, mixed with
the cross-entropy of the answers. Of the teacher's predictions the likeliest ids are kept. All other
ids are one more outcome, whose probability is the rest: so the divergence is that of K + 1
outcomes, and neither is the tail left out nor are the kept probabilities scaled up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atom.plugin import ObjectiveContext, Teacher
from atom_objectives import sft
from atom_objectives.config import Distill, Sft

if TYPE_CHECKING:
    import torch

    from atom.plugin import Predictions

_LEAST = 1e-7
"""Least probability of the tail, below the rounding of float32."""


def encoder(config: Distill, context: ObjectiveContext) -> sft.SftEncoder:
    """Return the encoder of a run: that of ``objective=sft``."""
    return sft.encoder(Sft(template=config.template, train_on=config.train_on), context)


def teacher(config: Distill) -> Teacher:
    """Return the teacher."""
    folder = Path(config.teacher.removeprefix("hf:")).expanduser().resolve()
    return Teacher(folder, config.top_k, config.temperature)


def loss(config: Distill) -> DistillationLoss:
    """Return the loss of tokens."""
    return DistillationLoss(config.temperature, config.hard_weight)


class DistillationLoss:
    """The loss of tokens.

    Args:
        temperature: of both models. The divergence is multiplied by its square, so that its
            gradients have the size of those of the cross-entropy.
        hard_weight: weight of the cross-entropy; that of the divergence is the rest.
    """

    def __init__(self, temperature: float, hard_weight: float) -> None:
        self._temperature = temperature
        self._hard_weight = hard_weight

    def __call__(self, predictions: Predictions) -> torch.Tensor:
        """Return the loss of each token."""
        from torch.nn.functional import cross_entropy

        logprobs = (predictions.logits / self._temperature).log_softmax(-1)
        ours = logprobs.gather(1, predictions.teacher_ids)
        theirs = predictions.teacher_logprobs
        divergence = (theirs.exp() * (theirs - ours)).sum(-1)
        our_tail, their_tail = _tail(ours), _tail(theirs)
        divergence = divergence + their_tail.exp() * (their_tail - our_tail)
        found = (1 - self._hard_weight) * self._temperature**2 * divergence
        if self._hard_weight:
            hard = cross_entropy(predictions.logits, predictions.labels, reduction="none")
            found = found + self._hard_weight * hard
        return found


def _tail(logprobs: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of all ids that are not among those given: [N]."""
    import torch

    return torch.log((1 - logprobs.exp().sum(-1)).clamp(min=_LEAST))
