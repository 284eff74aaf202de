"""Read the checkpoint of any run as that of a whole model: adapters are added to their base."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from atom.errors import UserError
from atom.titan import saved_model
from atom.titan.lora import layers
from atom.titan.lora.adapt import adapt, is_adapter, updated
from atom.titan.saved_model import Checkpoint, Trained
from atom.titan.weights.base import Base


def checkpoint(trained: Trained, place: Path, average: str | None = None) -> Checkpoint:
    """Return a checkpoint of a run, with the weights of a whole model.

    Args:
        trained: the run.
        place: the folder of the checkpoint.
        average: the callback whose averages replace what is trained; None: what is trained.

    Raises:
        UserError: it cannot be read, or its base is gone or has changed.
    """
    if not trained.run.lora.rank:
        return Checkpoint(place, average)
    return Merged(trained, Adapters(trained, place, average))


class Adapters(Checkpoint):
    """The adapters of a checkpoint.

    Attributes:
        updates: weight -> name of the layer with its update.
    """

    def __init__(self, trained: Trained, place: Path, average: str | None = None) -> None:
        super().__init__(place, average)
        model = saved_model.on_meta(adapt(trained.parts, trained.run.lora).model)
        expected = {name: value for name, value in model.named_parameters() if is_adapter(name)}
        shapes = {name: entry.size for name, entry in self.tensors.items()}
        if problem := saved_model.difference(expected, shapes):
            raise UserError(f"the checkpoint {place} is of other adapters: {problem}")
        self._scale = trained.run.lora.scale
        self.updates = {
            updated(name): name.removesuffix(f".{layers.A}.weight")
            for name in expected
            if name.endswith(f".{layers.A}.weight")
        }

    def matrices(self, weight: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B of a weight."""
        layer = self.updates[weight]
        return self.read(f"{layer}.{layers.A}.weight"), self.read(f"{layer}.{layers.B}.weight")

    def update(self, weight: str) -> torch.Tensor:
        """Return what is added to a weight, in float64."""
        first, second = self.matrices(weight)
        return self._scale * (second.double() @ first.double())


class Merged(Checkpoint):
    """A checkpoint of adapters with the weights that are the sums of base and updates.

    They have the dtype that the run trained in.
    """

    def __init__(self, trained: Trained, adapters: Adapters) -> None:
        self.place = adapters.place
        self._adapters, self._base = adapters, Base(trained)
        self._dtype = getattr(torch, trained.run.training.dtype)
        self.tensors = {
            name: TensorStorageMetadata(
                TensorProperties(self._dtype if tensor.is_floating_point() else tensor.dtype),
                tensor.shape,
                [],
            )
            for name, tensor in self._base.shapes.items()
        }

    def read(self, name: str) -> torch.Tensor:
        tensor = self._base.read(name)
        if name in self._adapters.updates:
            tensor = tensor.double() + self._adapters.update(name)
        return tensor.to(self.tensors[name].properties.dtype)

    def fill(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            found = self.read(name)
            if isinstance(tensor, DTensor):  # this rank's shard of it
                mesh, placements = tensor.device_mesh, tensor.placements
                found = distribute_tensor(found, mesh, placements, src_data_rank=None)
            tensor.copy_(found)
