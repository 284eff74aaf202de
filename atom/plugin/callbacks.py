"""Define what a callback of a plugin is called with, and at which points of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

if TYPE_CHECKING:  # listing plugins imports no torch
    import torch
    from torch import nn

__all__ = ["TrainerCallback", "Training"]


class Training(Protocol):
    """A view of a run in training, which every point of a callback gets.

    A callback of a plugin may rely on these attributes. Everything else of ``trainer`` is
    torchtitan's or ATOM's own, and can change with any release.
    """

    @property
    def step(self) -> int:
        """The current step, counted from 1; between steps, the last one done or loaded."""

    @property
    def steps(self) -> int:
        """The last step of the run."""

    @property
    def tokens_seen(self) -> int:
        """The tokens of all steps done so far, over all ranks."""

    @property
    def logged(self) -> bool:
        """Whether this step gets a row of ``metrics.jsonl``; the same on every rank."""

    @property
    def model_parts(self) -> Sequence[nn.Module]:
        """The parts of the model on this rank: one, or one per stage of a pipeline schedule.

        Parameters may be DTensors. Names of layers are those of the whole model.
        """

    @property
    def parallel_dims(self) -> Any:
        """torchtitan's ``ParallelDims``: the degrees, and a mesh for each of them."""

    @property
    def device(self) -> torch.device:
        """The device of this rank."""

    @property
    def optimizers(self) -> Any:
        """torchtitan's ``OptimizersContainer``: iterate over it for the optimizers."""

    @property
    def run_dir(self) -> Path:
        """The run folder. A callback may create files in its folder ``callbacks/NAME``."""

    @property
    def probing(self) -> bool:
        """Whether a forward pass is one over made-up tensors, by which a pipeline finds shapes.

        Forward hooks of modules ignore such a pass, which comes before the first step.
        """

    @property
    def trainer(self) -> Any:
        """The trainer itself: an escape hatch without promises."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Add values to the row of this step, under the callback's name in the run.

        Call it between ``before_step`` and ``after_optimizer``, on every rank: the values of the
        rank that writes the row are recorded, so sum over ranks before. Values of a step without a
        row are discarded, like its loss; :meth:`TrainerCallback.wants_row` asks for a row.

        Args:
            values: name -> a number, or a tensor with one element; at most 10,000. Names consist
                of letters, digits, ``_``, ``-``, ``.`` and ``/``.
        """

    def log_histograms(self, edges: Sequence[float], counts: Mapping[str, Sequence[float]]) -> None:
        """Add histograms to the row of this step. Call it as :meth:`log`, once in a step.

        Args:
            edges: the ends of the bins of all histograms, ascending; at most 513.
            counts: name -> the number of each bin, or its share; at most 200,000 numbers.
        """

    def alert(self, reason: str) -> None:
        """Record a warning in ``events.jsonl``, and show it. Call it on every rank alike."""

    def stop(self, reason: str) -> NoReturn:
        """End the run as failed, with a sentence. Call it on every rank alike."""


class TrainerCallback:
    """The base class of what a callback's ``callback`` function returns.

    Override the points that are needed; they are listed in the order in which a run reaches them.
    Every rank calls them alike, without gradients being recorded. A callback that only observes
    (:attr:`atom.plugin.Callback.observes`) changes no weight, gradient or buffer, and uses no
    random number of torch's default generators.
    """

    def on_start(self, training: Training) -> None:
        """Called after the model is built, before a checkpoint is loaded."""

    def on_gone_back(self, training: Training) -> None:
        """Called after a step was loaded, at the start or in a rollback; later steps are void."""

    def before_step(self, training: Training) -> None:
        """Called before a step, or its repetition, before the batch is read."""

    def before_forward(self, training: Training, inputs: dict[str, Any]) -> None:
        """Called before each forward and backward pass, with the arguments of the pass."""

    def after_forward(self, training: Training, loss: torch.Tensor) -> None:
        """Called after a forward and backward pass, with this rank's share of the loss."""

    def after_backward(self, training: Training) -> None:
        """Called after all passes of the step, before gradients are clipped."""

    def before_optimizer(self, training: Training, grad_norm: torch.Tensor) -> None:
        """Called before the optimizer takes a step; ``grad_norm`` is the norm before clipping.

        It is not called for a step that is skipped or rolled back.
        """

    def after_optimizer(self, training: Training) -> None:
        """Called after the optimizer has taken the step, before the step is logged."""

    def on_skipped(self, training: Training) -> None:
        """Called after a step with discarded gradients; the step counts."""

    def after_step(self, training: Training) -> None:
        """Called after a step, taken or skipped, and before its checkpoint is written."""

    def on_stop(self, training: Training) -> None:
        """Called when the run ends early, before its checkpoint is written."""

    def close(self, training: Training) -> None:
        """Called when the trainer ends, with or without an error."""

    def wants_row(self, step: int) -> bool:  # noqa: ARG002
        """Return whether ``step`` must have a row of ``metrics.jsonl``; the same on every rank."""
        return False

    def averages(self) -> Sequence[torch.Tensor]:
        """Return averaged weights, for a callback with :attr:`atom.plugin.Callback.averages`.

        ATOM saves them in every checkpoint, loads them in place, measures each validation set on
        them, and reads them for ``--average NAME``.

        Returns:
            From :meth:`on_start` on, always the same tensors: one in float32 for each parameter of
            ``model_parts`` that requires a gradient, in the order of ``parameters()``, with its
            shape, mesh and placements.
        """
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to checkpoint. Override it together with :meth:`load_state_dict`.

        A value is a tensor, a dictionary of tensors, or JSON data. A DTensor is saved in shards;
        any other value must be the same on every rank. The keys must be the same in every call
        after :meth:`on_start`, also before a checkpoint is loaded.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state. It is not called if the checkpoint has none of this callback.

        :meth:`averages` have been loaded before.
        """
