"""Find the layers of a model, and sum values of them over all ranks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from torch.utils._python_dispatch import _disable_current_modes

from atom.plugin import Training

_WRAPPERS = re.compile(r"(_checkpoint_wrapped_module|_orig_mod|_fsdp_wrapped_module)\.")
_LAYER = re.compile(r"layers\.(\d+)")


def layer_of(name: str) -> str:
    """Return the layer that a parameter or module belongs to: ``layers.3``, or ``norm``."""
    name = _WRAPPERS.sub("", f"{name}.").rstrip(".")
    layer = _LAYER.match(name)
    return layer[0] if layer else name.partition(".")[0]


def of_all_ranks(value: Any) -> list[Any]:
    """Return the values of all ranks."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def all_layers(here: Iterable[str]) -> list[str]:
    """Return the layers of all ranks, the same list on every rank: embeddings come first.

    Args:
        here: the layers of this rank, in the order of the model.
    """
    order: dict[str, tuple[int, int]] = {}
    for layers in of_all_ranks(list(dict.fromkeys(here))):
        numbered = False
        for layer in layers:
            match = _LAYER.fullmatch(layer)
            numbered |= match is not None
            place = (1, int(match[1])) if match else (2 if numbered else 0, 0)
            order.setdefault(layer, place)
    return sorted(order, key=lambda layer: order[layer])


def parameters(training: Training) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield this rank's parameters, each with its layer."""
    for part in training.model_parts:
        for name, parameter in part.named_parameters():
            yield layer_of(name), parameter


def modules(training: Training) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of this rank, each with its layer: layers, embeddings, norm, output."""
    for part in training.model_parts:
        for name, child in part.named_children():
            if name == "layers":
                yield from ((f"layers.{number}", layer) for number, layer in child.named_children())
            else:
                yield name, child


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a tensor; a sum over ranks that is still open is done first."""
    if not isinstance(tensor, DTensor):
        return tensor
    if any(placement.is_partial() for placement in tensor.placements):
        whole = [Replicate() if p.is_partial() else p for p in tensor.placements]
        tensor = tensor.redistribute(placements=whole)
    return tensor.to_local()


def copies(tensor: torch.Tensor, training: Training) -> int:
    """Return the number of ranks that hold the same values as this rank's shard."""
    ranks: int = dist.get_world_size() // training.parallel_dims.pp
    if isinstance(tensor, DTensor):
        for dimension, placement in enumerate(tensor.placements):
            if not placement.is_replicate():
                ranks //= tensor.device_mesh.size(dimension)
    return ranks


class Sums:
    """Sums of values per layer, on this rank.

    Args:
        layers: the layers of all ranks.
        device: the device of the values.
        width: number of values per layer.
    """

    def __init__(self, layers: Sequence[str], device: torch.device, width: int) -> None:
        self._rows = {layer: row for row, layer in enumerate(layers)}
        self.values = torch.zeros(len(layers), width, dtype=torch.float64, device=device)

    def add(self, layer: str, values: Sequence[Any], number: float) -> None:
        """Add values of this rank to those of a layer, and to the last value how many they are."""
        row = self.values[self._rows[layer]]
        for column, value in enumerate(values):
            row[column : column + value.numel()] += value
        row[-1] += number

    def add_squares(self, layer: str, tensor: torch.Tensor, share: float = 1.0) -> None:
        """Add the squares of a tensor's elements, and their number."""
        norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32).double()
        self.add(layer, [norm * norm * share], tensor.numel() * share)

    def totals(self) -> list[list[float]]:
        """Return the sums over all ranks, by layer; every rank must call it."""
        dist.all_reduce(self.values)
        totals: list[list[float]] = self.values.tolist()
        return totals


class Call(NamedTuple):
    """A call of a module."""

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any

    @property
    def activation(self) -> torch.Tensor | None:
        """This rank's part of the output, or of its first tensor; None if there is none."""
        first = self.output[0] if isinstance(self.output, tuple) else self.output
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            return local(first)
        return None


class Hooks:
    """Forward hooks that are there during the passes of one step.

    Args:
        training: the run.
        hooks: the modules, each with a function that gets the calls of the module.
    """

    def __init__(
        self, training: Training, hooks: Sequence[tuple[nn.Module, Callable[[Call], None]]]
    ) -> None:
        self._training = training
        self._hooks = hooks
        self._handles: list[Any] = []

    def add(self) -> None:
        """Register the hooks."""
        for module, called in self._hooks:
            handle = module.register_forward_hook(self._hook(called), with_kwargs=True)
            self._handles.append(handle)

    def remove(self) -> None:
        """Remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, called: Callable[[Call], None]) -> Callable[..., None]:
        def hook(_module: nn.Module, *call: Any) -> None:
            # A backward pass recomputes what activation checkpointing has not kept.
            in_backward = torch._C._current_graph_task_id() != -1
            if in_backward or self._training.probing:
                return
            # Selective checkpointing would keep products of the hook as those of the layer.
            with torch.no_grad(), _disable_current_modes():
                called(Call(*call))

        return hook
