"""Save and load the state of plugins' callbacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Mapping
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.stateful import Stateful

from atom.errors import RunError
from atom.plugin import TrainerCallback

CALLBACKS = "callbacks."
"""Prefix of the state-dict keys of callbacks."""

AVERAGE = "average"
"""Key of the averaged weights in the state of a callback: PARAMETER -> tensor."""


class HasAverages(Protocol):
    """What saves and loads averaged weights: see :class:`atom.titan.train.averages.Averages`."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averages by the names of the weights."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over averages by name."""


class CallbackState(Stateful):
    """The state of a callback: tensors as they are, everything else as JSON.

    DCP would merge a dictionary of plain data into the keys of the checkpoint, and then require
    the same keys on load.

    Args:
        callback: the callback.
        called: calls its code: ``called(point, code, *arguments)``.
        averages: its averaged weights, if it has any.
    """

    def __init__(
        self,
        callback: TrainerCallback,
        called: Callable[..., Any],
        averages: HasAverages | None = None,
    ) -> None:
        self._callback = callback
        self._called = called
        self.averages = averages

    def state_dict(self) -> dict[str, Any]:
        state = self._called("state_dict", self._callback.state_dict)
        found = {
            key: value if _is_tensors(value) else self._called("state_dict", json.dumps, value)
            for key, value in state.items()
        }
        if self.averages is not None:
            found[AVERAGE] = self._called("averages", self.averages.state)
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = {
            key: json.loads(value) if isinstance(value, str) else value
            for key, value in state_dict.items()
        }
        if self.averages is not None:
            self._called("averages", self.averages.load, state.pop(AVERAGE))
        self._called("load_state_dict", self._callback.load_state_dict, state)


def averaging(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states with averaged weights, which a checkpoint of weights alone has, too."""
    return {
        name: state
        for name, state in states.items()
        if isinstance(state, CallbackState) and state.averages is not None
    }


def leave_out_new(state_dict: dict[str, Any], saved: Container[str]) -> None:
    """Load no state of callbacks that the saved run did not have.

    Args:
        state_dict: what would be loaded; callbacks without a saved state are removed.
        saved: the keys of the checkpoint.

    Raises:
        RunError: the checkpoint has only a part of a callback's state.
    """
    for name in [name for name in state_dict if name.startswith(CALLBACKS)]:
        keys = flatten_state_dict({name: state_dict[name].state_dict()})[0]
        missing = [key for key in keys if key not in saved]
        if len(missing) == len(keys):
            state_dict.pop(name)
        elif missing:
            raise RunError(
                f"{name} cannot resume: its state is that of other parameters or of another "
                f"version (the checkpoint has no {missing[0]}); valid: the same, or without it"
            )


def _is_tensors(value: object) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_tensors, value.values()))
    return isinstance(value, torch.Tensor)
