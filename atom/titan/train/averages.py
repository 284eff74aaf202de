"""Save, load and validate the averaged weights that a callback keeps beside those in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from atom.errors import RunError
from atom.titan.lora.adapt import is_adapter

if TYPE_CHECKING:
    from atom.titan.train.trainer import AtomTrainer


class Averages:
    """The averaged weights of one callback, under the names that the weights have in checkpoints.

    Args:
        trainer: the run.
        averages: returns a tensor for each trained parameter of the model parts, in their order.
    """

    def __init__(
        self, trainer: AtomTrainer, averages: Callable[[], Sequence[torch.Tensor]]
    ) -> None:
        self._trainer = trainer
        self._averages = averages

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averages by name. Fused weights are split, as in the model's checkpoint."""
        found: dict[str, torch.Tensor] = {}
        with self._in_the_model():
            for part in self._parts:
                left_out = {id(buffer) for buffer in part.buffers()}
                state = part.state_dict(keep_vars=True)
                adapters = {name: value for name, value in state.items() if is_adapter(name)}
                state = adapters or state
                found |= {name: value for name, value in state.items() if id(value) not in left_out}
        return found

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over averages by name."""
        with self._in_the_model():
            for part in self._parts:
                part.load_state_dict(state, strict=False)

    @contextmanager
    def as_weights(self) -> Iterator[None]:
        """Give the parameters the values of the averages, and restore them at the end."""
        pairs = [(_local(p), _local(average)) for p, average in self._pairs()]
        before = [parameter.clone() for parameter, _ in pairs]
        for parameter, average in pairs:
            parameter.copy_(average)
        try:
            yield
        finally:
            for (parameter, _), values in zip(pairs, before, strict=True):
                parameter.copy_(values)

    @property
    def _parts(self) -> list[nn.Module]:
        parts: list[nn.Module] = self._trainer.model_parts
        return parts

    @contextmanager
    def _in_the_model(self) -> Iterator[None]:
        """Put the averages in the place of the parameters, for state dicts: without copies."""
        averages = {id(parameter): average for parameter, average in self._pairs()}
        places = [
            (module._parameters, name, parameter)
            for part in self._parts
            for module in part.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and id(parameter) in averages
        ]
        for parameters, name, parameter in places:
            parameters[name] = averages[id(parameter)]  # type: ignore[assignment]
        try:
            yield
        finally:
            for parameters, name, parameter in places:
                parameters[name] = parameter

    def _pairs(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        every = (parameter for part in self._parts for parameter in part.parameters())
        parameters = [parameter for parameter in every if parameter.requires_grad]
        averages = list(self._averages())
        if [p.shape for p in parameters] != [average.shape for average in averages]:
            raise RunError(
                "averages returns other tensors than one of each parameter's shape, in their order"
            )
        return list(zip(parameters, averages, strict=True))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
