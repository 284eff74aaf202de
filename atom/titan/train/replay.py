"""Detect silent data corruption: compute a step's gradients twice and compare their bits.

The second forward and backward pass uses the same weights, sequences and random numbers. A
processor with intermittent errors produces different bits.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from atom.run_dir import events
from atom.titan.train.callback import Callback, is_due
from atom.titan.train.replicas import checksum
from atom.titan.train.untouched import ModelState


class ReplayCheck(Callback):
    """A callback that repeats each ``faults.replay_check_interval``-th step's gradients.

    Raises:
        RunError: the second gradients differ.
    """

    name = "replay"

    def on_built(self) -> None:
        self._replay: Replay | None = None

    def before_step(self) -> None:
        trainer = self.trainer
        due = is_due(trainer.config.faults.replay_check_interval, trainer.step)
        self._replay = Replay(trainer.model_parts) if due else None

    def before_forward(self, inputs: dict[str, Any]) -> None:
        if self._replay is not None:
            self._replay.before(inputs)

    def after_forward(self, loss: torch.Tensor) -> None:
        if self._replay is not None:
            self._replay.after(loss)

    def after_backward(self) -> None:
        replay, self._replay = self._replay, None
        if replay is None:
            return
        trainer = self.trainer
        tokens: int = trainer.ntokens_seen
        words = replay.differing(trainer.computed)
        trainer.ntokens_seen = tokens  # the same tokens again
        if words is not None:
            trainer.fail(
                events.REPLAY_DIFFERS,
                f"step {trainer.step} computed again gives other bits: {words}",
            )


class Replay:
    """The inputs needed to compute a step again.

    They are its batch, which is small, and the model's state beside its parameters. Gradients are
    compared by a 64-bit sum of their bits, so they need no second copy.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        self._parts = parts
        self._inputs: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._state: ModelState | None = None

    def before(self, inputs: dict[str, Any]) -> None:
        """Record the inputs of a forward and backward pass before it runs."""
        if self._state is None:
            self._state = ModelState(self._parts)
        self._inputs.append(_copied(inputs))

    def after(self, loss: torch.Tensor) -> None:
        """Record the loss of the pass."""
        self._losses.append(_bits(loss).clone())

    def differing(self, forward_backward: Callable[..., torch.Tensor]) -> str | None:
        """Compute the gradients again; return the ranks with differences, or None.

        The loss is compared, too. The answer is the same on every rank, and the new gradients
        replace the step's.

        Args:
            forward_backward: computes the loss of one recorded input and adds to the gradients.
        """
        first = self._sums(self._losses)
        self._rewind()
        losses = [_bits(forward_backward(**_copied(inputs))).clone() for inputs in self._inputs]
        second = self._sums(losses)
        names = ["loss", *(name for name, _ in self._parameters())]
        unlike = [
            name for name, same in zip(names, (first == second).tolist(), strict=True) if not same
        ]
        mine = f"{socket.gethostname()}, in {unlike[0]}" if unlike else None
        found: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(found, mine)
        said = [f"rank {rank} ({words})" for rank, words in enumerate(found) if words]
        return ", ".join(said) or None

    def _rewind(self) -> None:
        assert self._state is not None
        self._state.restore()
        for _, parameter in self._parameters():
            parameter.grad = None

    def _sums(self, losses: list[torch.Tensor]) -> torch.Tensor:
        """Return checksums of the losses, and of each parameter's gradient."""
        sums = [checksum(torch.stack(losses))]
        for _, parameter in self._parameters():
            gradient = parameter.grad
            if isinstance(gradient, DTensor):
                gradient = gradient.to_local()
            sums.append(torch.zeros_like(sums[0]) if gradient is None else checksum(gradient))
        return torch.stack(sums)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for part in self._parts for pair in part.named_parameters()]


def _bits(loss: torch.Tensor) -> torch.Tensor:
    """Return this rank's share of the loss."""
    return (loss.to_local() if isinstance(loss, DTensor) else loss).detach().reshape(())


def _copied(inputs: Any) -> Any:
    """Return the same tensors in new containers, which a pass may modify."""
    if isinstance(inputs, dict):
        return {name: _copied(value) for name, value in inputs.items()}
    if isinstance(inputs, list):
        return [_copied(value) for value in inputs]
    return inputs
