"""Silent data corruption: whether a step's gradients, computed again, have the same bits.

The same weights, the same sequences and the same random numbers go through the forward and the
backward pass a second time. A processor that errs now and then gives other bits.
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


class ReplayCheck(Callback):
    """Computes the gradients of every ``faults.replay_check_interval``-th step twice.

    Raises:
        RunError: they are others the second time.
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
        trainer.ntokens_seen = tokens  # the same ones again
        if words is not None:
            trainer.fail(
                events.REPLAY_DIFFERS,
                f"step {trainer.step} computed again gives other bits: {words}",
            )


class Replay:
    """What a step needs to be computed again: its batch, which is small, the model's buffers (a
    mixture counts its experts' tokens there) and the state of the random numbers.

    Gradients are compared by a 64-bit sum of their bits, so they need no memory twice.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        self._parts = parts
        self._inputs: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []
        self._state: tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None] | None = None

    def before(self, inputs: dict[str, Any]) -> None:
        """Take note of the inputs of a forward and backward pass that is about to be."""
        if self._state is None:
            cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
            buffers = [buffer.detach().clone() for buffer in self._buffers()]
            self._state = (buffers, torch.get_rng_state(), cuda)
        self._inputs.append(_copied(inputs))

    def after(self, loss: torch.Tensor) -> None:
        """Take note of its loss."""
        self._losses.append(_bits(loss).clone())

    def differing(self, forward_backward: Callable[..., torch.Tensor]) -> str | None:
        """Compute the gradients again, which are then those of the step; return on which ranks they
        or the loss differ from the first time, or None. The same answer on every rank.

        Args:
            forward_backward: computes the loss of one of the inputs and adds to the gradients.
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
        buffers, cpu, cuda = self._state
        with torch.no_grad():
            for buffer, before in zip(self._buffers(), buffers, strict=True):
                buffer.copy_(before)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
        for _, parameter in self._parameters():
            parameter.grad = None

    def _sums(self, losses: list[torch.Tensor]) -> torch.Tensor:
        """Return a number of the losses' bits, and of those of each parameter's gradient."""
        sums = [checksum(torch.stack(losses))]
        for _, parameter in self._parameters():
            gradient = parameter.grad
            if isinstance(gradient, DTensor):
                gradient = gradient.to_local()
            sums.append(torch.zeros_like(sums[0]) if gradient is None else checksum(gradient))
        return torch.stack(sums)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [pair for part in self._parts for pair in part.named_parameters()]

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer for part in self._parts for buffer in part.buffers()]


def _bits(loss: torch.Tensor) -> torch.Tensor:
    """Return this rank's share of the loss."""
    return (loss.to_local() if isinstance(loss, DTensor) else loss).detach().reshape(())


def _copied(inputs: Any) -> Any:
    """Return the same tensors in containers of their own, which a pass may change."""
    if isinstance(inputs, dict):
        return {name: _copied(value) for name, value in inputs.items()}
    if isinstance(inputs, list):
        return [_copied(value) for value in inputs]
    return inputs
