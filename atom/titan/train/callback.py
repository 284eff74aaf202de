"""Name the points of training at which something may be done beside a step, and who does it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.distributed.checkpoint.stateful import Stateful

if TYPE_CHECKING:
    from atom.titan.train.trainer import AtomTrainer


class Decision(Enum):
    """What becomes of a step whose gradients are there."""

    TAKE = "the optimizer takes the step"
    SKIP = "the step counts, and changes no weights"
    AGAIN = "the run has gone back to a checkpoint, and does the step after that one"


class Callback:
    """One concern of training, called at named points, on all ranks alike.

    A callback overrides the points that it needs. They stand here in the order in which a run
    reaches them. At each, the callbacks of a trainer are called in the order of its list
    (:data:`atom.titan.train.callbacks.CALLBACKS`).

    Args:
        trainer: whose it is. It is not built yet: :meth:`on_built` is the first point at which it
            has a model.
    """

    name: ClassVar[str]
    """Of the callback, in the list and in errors."""

    state_name: ClassVar[str | None] = None
    """The key of its state in a checkpoint; None for a callback without state."""

    def __init__(self, trainer: AtomTrainer) -> None:
        self.trainer = trainer

    @property
    def state(self) -> Stateful:
        """What a checkpoint holds of it, where it has a ``state_name``."""
        raise NotImplementedError(f"{self.name} has a state_name and no state")

    def on_phase(self, phase: str) -> None:
        """A phase of the start has ended (:data:`atom.titan.train.startup.PHASES`)."""

    def on_built(self) -> None:
        """The trainer is built, and no checkpoint is loaded."""

    def between_steps(self) -> None:
        """The step ``trainer.step`` is done, or loaded, and the next has not begun."""

    def on_gone_back(self, step: int) -> None:
        """``step`` is the last that counts: it was loaded, at the start or after a fault."""

    def before_step(self) -> None:
        """A step begins, or is begun again; its batch has not been read."""

    def before_forward(self, inputs: dict[str, Any]) -> None:
        """A forward and backward pass begins, with the arguments of ``forward_backward_step``."""

    def after_forward(self, loss: torch.Tensor) -> None:
        """It has ended, with this rank's share of the loss."""

    def after_backward(self) -> None:
        """The gradients of all passes of the step are there, and not clipped."""

    def before_optimizer(self, grad_norm: torch.Tensor) -> Decision:  # noqa: ARG002
        """Decide what becomes of the step; ``grad_norm`` is that before clipping.

        The first decision that is not to take it holds, and no later callback is asked.
        """
        return Decision.TAKE

    def on_skipped(self) -> None:
        """The step counts and its gradients were not taken."""

    def after_step(self) -> None:
        """The step is done: taken, or skipped."""

    def before_stop(self) -> bool:
        """The run was asked to stop; return whether it has gone back, and must do a step first."""
        return False

    def on_stop(self) -> None:
        """The run ends early, and its checkpoint is not written yet."""

    def close(self) -> None:
        """The trainer ends, whether by an error or not."""


def is_due(interval: int, step: int) -> bool:
    """Return whether a thing done every ``interval`` steps, 0 for never, is due at a step."""
    return interval > 0 and step % interval == 0
