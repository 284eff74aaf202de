"""Record what a run reads and where it runs: the digest of its tokens, and its machines."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.checkpoint.stateful import Stateful

from atom.run_dir import starts
from atom.titan.checkpoint.checkpointer import STREAM
from atom.titan.train import machine
from atom.titan.train.callback import Callback
from atom.titan.train.data import DocumentLoader

_FACTOR = 0x5851F42D4C957F2D
"""An odd number, so that the digest depends on the order of the steps and on every bit."""


def extended(stream: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the digest of a stream after one more step.

    Args:
        stream: the digest up to the step before: an integer of 64 bits.
        tokens: the digest of the step's global batch.
    """
    return stream * _FACTOR + tokens


class Provenance(Callback):
    """A callback that keeps the digest of the tokens of all steps, and records the machines."""

    name = "provenance"
    state_name = STREAM

    def on_built(self) -> None:
        trainer = self.trainer
        self._state = _State(trainer)
        if trainer.config.token_digest and isinstance(trainer.dataloader, DocumentLoader):
            trainer.stream = torch.zeros((), dtype=torch.int64)
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            rank = torch.distributed.get_rank()
            starts.add_machine(trainer.run, rank, machine.facts(trainer.device))

    @property
    def state(self) -> Stateful:
        """The digest."""
        return self._state


class _State(Stateful):
    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        stream = self._trainer.stream
        return {} if stream is None else {"digest": stream.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._trainer.stream is not None and "digest" in state_dict:
            self._trainer.stream = state_dict["digest"].clone()
