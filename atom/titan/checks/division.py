"""Check that a layout divides a model's dimensions evenly among ranks.

torchtitan's default backend gives each rank its chunk of a tensor, and infers the full size as the
first rank's chunk times the number of ranks. An uneven division therefore builds a larger model,
without an error. The dimensions are read from the shardings in the model's config.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import spmd_types as spmd
from pydantic import BaseModel
from torch import nn
from torchtitan.config import ParallelismConfig
from torchtitan.models.common.moe import RoutedExperts
from torchtitan.protocols.module import Module

from atom.errors import UserError
from atom.titan.checks.engine import sharded
from atom.titan.checks.plan import Plan

Shape = tuple[int, ...]

_KEYS = {
    "dp": "data_parallel_shard_degree",
    "dp_replicate": "data_parallel_replicate_degree",
    "dp_shard": "data_parallel_shard_degree",
    "cp": "context_parallel_degree",
    "tp": "tensor_parallel_degree",
    "ep": "expert_parallel_degree",
    "efsdp": "data_parallel_shard_degree",
}


@dataclass(frozen=True)
class Part:
    """A dimension of ``size`` of the tensor ``name``, sharded over axes of the mesh."""

    name: str
    dim: int
    size: int
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Experts:
    """A tensor of ``number`` experts.

    FSDP shards its second dimension if there are fewer experts than ranks. That dimension is
    ``size`` before ``axes`` shard it.
    """

    name: str
    number: int
    size: int
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Division:
    """The sharded dimensions of a model, each size once.

    Attributes:
        parts: sharded as the model's shardings declare.
        experts: sharded by FSDP.
    """

    parts: tuple[Part, ...]
    experts: tuple[Experts, ...]

    def check(self, parallelism: ParallelismConfig, parameters: BaseModel | None) -> None:
        """Refuse a degree that does not divide a size.

        Args:
            parallelism: with every degree known.
            parameters: the architecture's, to name the parameters with the size.

        Raises:
            UserError: names the degree, and the parameter of the architecture.
        """
        degrees = _degrees(parallelism)
        for part in self.parts:
            for axis, degree in _used(part.axes, degrees):
                if part.size % degree:
                    what = _named(part.size, parameters)
                    raise UserError(
                        f"must divide {what}, dimension {part.dim} of {part.name}",
                        key=f"parallelism.{_KEYS[axis]}",
                        value=getattr(parallelism, _KEYS[axis]),
                    )
        for tensor in self.experts:
            self._check_experts(tensor, degrees, parallelism, parameters)

    @staticmethod
    def _check_experts(
        tensor: Experts,
        degrees: Mapping[str, int],
        parallelism: ParallelismConfig,
        parameters: BaseModel | None,
    ) -> None:
        """Check the dimension that torchtitan (``apply_fsdp_to_decoder``) picks for FSDP.

        torch pads only the first dimension.
        """
        shared = parallelism.data_parallel_shard_degree * degrees["cp"]
        if degrees["ep"] > 1:
            ranks, all_ranks = degrees["efsdp"], degrees["efsdp"] * degrees["ep"]
        else:
            # Under torchtitan's newer backends the mesh that it inspects also has the TP axis.
            partial = parallelism.spmd_backend == "partial_dtensor"
            ranks = shared
            all_ranks = ranks * parallelism.data_parallel_replicate_degree
            all_ranks *= 1 if partial else degrees["tp"]
        if all_ranks <= tensor.number:
            return
        size = tensor.size
        for _, degree in _used(tensor.axes, degrees):
            size //= degree
        if size % ranks:
            raise UserError(
                f"FSDP divides {tensor.number} experts among more ranks by another dimension, and "
                f"{ranks} ranks do not divide {_named(tensor.size, parameters)}, dimension 1 of "
                f"{tensor.name}"
                + (f" ({size} a rank of the other axes)" if size != tensor.size else "")
                + "; valid: fewer ranks here and more in parallelism.expert_parallel_degree or "
                "data_parallel_replicate_degree",
                key="parallelism.data_parallel_shard_degree",
                value=parallelism.data_parallel_shard_degree,
            )


def check(plan: Plan) -> None:
    """Refuse a layout that does not divide the sizes of the model.

    Raises:
        UserError: names the degree, and the parameter of the architecture.
    """
    found = division(sharded(plan.model_config, plan.training, plan.parallelism), plan.shapes)
    found.check(plan.parallelism, plan.architecture)


def division(config: Any, shapes: Mapping[str, Shape]) -> Division:
    """Return the sharded dimensions of the model of ``config``.

    Args:
        config: a torchtitan model config, with its sharding set.
        shapes: shapes of the model's tensors, by name.
    """
    parts: dict[Any, Part] = {}
    layouts: dict[str, dict[int, tuple[str, ...]]] = {}
    for name, layout in _layouts(config):
        layouts[name] = _axes(layout)
        for dim, axes in layouts[name].items() if name in shapes else ():
            size = shapes[name][dim]
            parts.setdefault((size, axes), Part(name, dim % len(shapes[name]), size, axes))
    experts: dict[Any, Experts] = {}
    for prefix, node, _, _ in config.traverse(RoutedExperts.Config, recurse=True):
        inner = f"{prefix}.inner_experts."
        for name, shape in shapes.items():
            if name.startswith(inner) and len(shape) > 1:
                axes = layouts.get(name, {}).get(1, ())
                found = Experts(name, node.inner_experts.num_experts, shape[1], axes)
                experts.setdefault((found.number, found.size, axes), found)
    return Division(tuple(parts.values()), tuple(experts.values()))


def shapes_of(model: nn.Module) -> dict[str, Shape]:
    """Return the shapes of the parameters and buffers of ``model``, by name."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tuple(tensor.shape) for name, tensor in named}


def _layouts(config: Any) -> Iterator[tuple[str, Any]]:
    for prefix, node, _, _ in config.traverse(Module.Config, recurse=True):
        sharding = getattr(node, "sharding_config", None)
        for name, layout in (sharding.state_shardings if sharding is not None else {}).items():
            yield (f"{prefix}.{name}" if prefix else name), layout


def _axes(layout: Any) -> dict[int, tuple[str, ...]]:
    """Return the mesh axes that shard each dimension."""
    found: dict[int, tuple[str, ...]] = {}
    for axis, kind in layout.per_axis_spmd_types().items():
        if isinstance(kind, spmd.Shard):
            found[kind.dim] = (*found.get(kind.dim, ()), str(axis))
    return found


def _degrees(parallelism: ParallelismConfig) -> dict[str, int]:
    """Return the number of ranks of each axis."""
    shard, replicate, cp, tp, ep = (
        parallelism.data_parallel_shard_degree,
        parallelism.data_parallel_replicate_degree,
        parallelism.context_parallel_degree,
        parallelism.tensor_parallel_degree,
        parallelism.expert_parallel_degree,
    )
    return {
        "dp": replicate * shard,
        "dp_replicate": replicate,
        "dp_shard": shard,
        "cp": cp,
        "tp": tp,
        "ep": ep,
        "efsdp": shard * cp * tp // ep,
    }


def _used(axes: Iterable[str], degrees: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield each axis with the product of its ranks and those of the axes before it."""
    product = 1
    for axis in axes:
        if degrees.get(axis, 1) > 1:
            product *= degrees[axis]
            yield axis, product


def names_of(size: int, parameters: BaseModel | None) -> list[str]:
    """Return the architecture's parameters with ``size`` as value, or as the product of two."""
    values = {
        f"architecture.{name}": value
        for name, value in (dict(parameters) if parameters is not None else {}).items()
        if type(value) is int and value > 1
    }
    return [name for name, value in values.items() if value == size] or [
        f"{one} x {other}"
        for one, other in combinations(values, 2)
        if values[one] * values[other] == size
    ]


def _named(size: int, parameters: BaseModel | None) -> str:
    names = names_of(size, parameters)
    return f"{' or '.join(names)}={size}" if names else f"the width of {size}"
