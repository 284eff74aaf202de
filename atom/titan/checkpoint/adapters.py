"""Save and load the adapters of a model without its other weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor
from torchtitan.components.checkpointer.base import MODEL, ModelWrapper
from torchtitan.components.checkpointer.utils import canonical_fqn

from atom.recipe.lora import Lora
from atom.titan.checkpoint.checkpointer import VerifiedCheckpointManager
from atom.titan.lora import peft
from atom.titan.lora.adapt import is_adapter
from atom.titan.shards import part_of


def config(usual: VerifiedCheckpointManager.Config, lora: Lora) -> VerifiedCheckpointManager.Config:
    """Return the config of checkpoints with the adapters alone, for a run that trains some."""
    if not lora.rank:
        return usual
    given = {field.name: getattr(usual, field.name) for field in fields(usual) if field.init}
    begun = None if lora.adapter is None else str(lora.adapter)
    return AdapterCheckpointManager.Config(**given, adapter=begun)


class AdapterCheckpointManager(VerifiedCheckpointManager):
    """A checkpoint manager that saves adapters alone, and loads the base from the initial weights.

    Checkpoints of the run lack the base, so it is loaded at every start.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(VerifiedCheckpointManager.Config):
        adapter: str | None = None
        """Initial adapters: a folder in PEFT's format."""

    def __init__(self, config: Config, **runtime: Any) -> None:
        super().__init__(config, **runtime)
        if self.enable:
            self._adapters = AdaptersAlone(self.states[MODEL].model)
            self.states[MODEL] = self._adapters
            self._base = (config.initial_load_path, config.initial_load_in_hf)
            self._begun = config.adapter
            # Weights that a run without checkpoints would load in place of adapters.
            self.initial_load_path, self.initial_load_in_hf = None, False

    def load_initial(self) -> None:
        """Load the base, and the initial adapters if the run names some."""
        if self.enable:
            self._load_base()
            self._begin()

    def _load(self, step: int = -1) -> bool:
        self._load_base()
        loaded: bool = super()._load(step)
        if not loaded:
            self._begin()
        return loaded

    def _load_base(self) -> None:
        place, hugging_face = self._base
        quantized = self.initial_load_in_hf_quantized
        self.dcp_load(self._adapters.base(), str(place), hugging_face, quantized)

    def _begin(self) -> None:
        if self._begun is not None:
            self._adapters.begin(Path(self._begun), self.sd_adapter)


class AdaptersAlone(Stateful):
    """The state of the adapters of a model."""

    def __init__(self, parts: list[nn.Module]) -> None:
        self._parts = parts

    def state_dict(self) -> dict[str, Any]:
        return {name: parameter.detach() for name, parameter in self._parameters().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part in self._parts:
            part.load_state_dict(state_dict, strict=False)

    def base(self) -> dict[str, Any]:
        """Return the state of the other weights, which are under the names of a whole model."""
        state = ModelWrapper(self._parts).state_dict()
        return {name: value for name, value in state.items() if not is_adapter(name)}

    def begin(self, folder: Path, converter: Any) -> None:
        """Begin with adapters in PEFT's format: copy this rank's shards of them."""
        parameters = self._parameters()
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        for name, whole in peft.read(folder, converter, shapes).items():
            parameter = parameters[name].detach()
            if isinstance(parameter, DTensor):
                parameter.to_local().copy_(part_of(whole, parameter))
            else:
                parameter.copy_(whole)

    def _parameters(self) -> dict[str, nn.Parameter]:
        named = (pair for part in self._parts for pair in part.named_parameters())
        found = ((canonical_fqn(name), parameter) for name, parameter in named)
        return {name: parameter for name, parameter in found if is_adapter(name)}
