"""Define callbacks: the points of training at which they are called."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.stateful import Stateful

if TYPE_CHECKING:
    from atom.titan.train.trainer import AtomTrainer


class Decision(Enum):
    """The decision about a step after its gradients are computed."""

    TAKE = "the optimizer takes the step"
    SKIP = "the step counts, and changes no weights"
    AGAIN = "the run has rolled back to a checkpoint, and repeats the step after it"


class Callback:
    """One concern of training, called at named points, on all ranks alike.

    A callback overrides the points that it needs. They are listed in the order in which a run
    reaches them. At each point the trainer calls its callbacks in the order of
    :data:`atom.titan.train.callbacks.CALLBACKS`, followed by those of plugins.

    Args:
        trainer: the trainer that calls it. It is not built yet: it has a model from
            :meth:`on_built` on.
    """

    name: str
    """The callback's name, in the list and in errors."""

    state_name: str | None = None
    """The key of its state in a checkpoint; None for a callback without state."""

    def __init__(self, trainer: AtomTrainer) -> None:
        self.trainer = trainer

    @property
    def state(self) -> Stateful:
        """The state to checkpoint, if the callback has a ``state_name``."""
        raise NotImplementedError(f"{self.name} has a state_name and no state")

    def on_phase(self, phase: str) -> None:
        """Called after a phase of the start (:data:`atom.titan.train.startup.PHASES`)."""

    def on_built(self) -> None:
        """Called after the trainer is built, before a checkpoint is loaded."""

    def before_load(self) -> None:
        """Called after the trainer is built, within ``train``, before a checkpoint is loaded."""

    def still_starting(self) -> None:
        """Called at times while another callback works in :meth:`before_load`."""

    def between_steps(self) -> None:
        """Called after step ``trainer.step`` is done or loaded, before the next begins."""

    def on_gone_back(self, step: int) -> None:
        """Called after ``step`` was loaded, at the start or in a rollback; later steps are void."""

    def before_step(self) -> None:
        """Called before a step, or its repetition, before the batch is read."""

    def on_sequences(self, sequences: Sequence[bytes]) -> None:
        """Called before the passes of a step, or of a validation set, with the digests of its
        examples' sequences on this rank, by their numbers; not if labels are not numbered.
        """

    def before_forward(self, inputs: dict[str, Any]) -> None:
        """Called before each forward and backward pass, with the arguments of the pass."""

    def after_forward(self, loss: torch.Tensor) -> None:
        """Called after a forward and backward pass, with this rank's share of the loss."""

    def after_backward(self) -> None:
        """Called after all passes of the step, before gradients are clipped."""

    def before_optimizer(self, grad_norm: torch.Tensor) -> Decision:  # noqa: ARG002
        """Decide on the optimizer step; ``grad_norm`` is the norm before clipping.

        The first decision other than ``TAKE`` is final; later callbacks are not called.
        """
        return Decision.TAKE

    def after_optimizer(self) -> None:
        """Called after the optimizer has taken the step, before the step is logged."""

    def on_skipped(self) -> None:
        """Called after a step with discarded gradients; the step counts."""

    def after_step(self) -> None:
        """Called after a step, taken or skipped."""

    def before_stop(self) -> bool:
        """Called when the run was asked to stop.

        Return True after a rollback: the run then does one more step before it stops.
        """
        return False

    def on_stop(self) -> None:
        """Called when the run ends early, before its checkpoint is written."""

    def close(self) -> None:
        """Called when the trainer ends, with or without an error."""


def is_due(interval: int, step: int) -> bool:
    """Return whether ``step`` is a multiple of ``interval``; False if ``interval`` is 0."""
    return interval > 0 and step % interval == 0
