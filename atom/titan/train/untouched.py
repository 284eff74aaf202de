"""Compute with the model of a trainer without an effect on its training."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from atom.titan.train.trainer import AtomTrainer


class ModelState:
    """The buffers of a model (a mixture counts its experts' tokens there) and the states of the
    random number generators, to be restored after a forward pass.
    """

    def __init__(self, parts: list[nn.Module]) -> None:
        self._parts = parts
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self._before = [buffer.detach().clone() for buffer in self._buffers()]

    def restore(self) -> None:
        """Restore them."""
        with torch.no_grad():
            for buffer, before in zip(self._buffers(), self._before, strict=True):
                buffer.copy_(before)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer for part in self._parts for buffer in part.buffers()]


class Untouched:
    """A context without gradients, in evaluation mode; at its end everything is as before it."""

    def __init__(self, trainer: AtomTrainer) -> None:
        self._trainer = trainer
        self._stack = ExitStack()

    def __enter__(self) -> None:
        parts = self._trainer.model_parts
        self._state = ModelState(parts)
        self._tokens = self._trainer.ntokens_seen
        self._stack.enter_context(torch.no_grad())
        for part in parts:
            part.eval()

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        trainer = self._trainer
        for part in trainer.model_parts:
            part.train()
            for module in part.modules():
                # Without a backward pass, FSDP would leave the root's parameters gathered, and a
                # checkpoint would save them so.
                if isinstance(module, FSDPModule):
                    module.reshard()
        trainer.ntokens_seen = self._tokens
        self._state.restore()
