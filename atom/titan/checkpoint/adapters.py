"""Save and load the adapters of a model without its other weights."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.checkpoint.stateful import Stateful
from torchtitan.components.checkpointer.base import ModelWrapper
from torchtitan.components.checkpointer.utils import canonical_fqn

from atom.titan.lora.adapt import is_adapter


class AdaptersAlone(Stateful):
    """The state of the adapters of a model."""

    def __init__(self, parts: list[nn.Module]) -> None:
        self._parts = parts

    def state_dict(self) -> dict[str, Any]:
        named = (pair for part in self._parts for pair in part.named_parameters())
        found = ((canonical_fqn(name), parameter) for name, parameter in named)
        return {name: parameter.detach() for name, parameter in found if is_adapter(name)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part in self._parts:
            part.load_state_dict(state_dict, strict=False)

    def base(self) -> dict[str, Any]:
        """Return the state of the other weights, which are under the names of a whole model."""
        state = ModelWrapper(self._parts).state_dict()
        return {name: value for name, value in state.items() if not is_adapter(name)}
