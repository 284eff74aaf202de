"""Initial weights that do not depend on the layout.

torchtitan initialises every rank's shard with that rank's generator, so that on a CPU, and under
pipeline parallelism everywhere, another layout means other weights. Here each parameter is drawn
whole, from a generator seeded with the run's seed and the parameter's own name; every rank then
keeps its part. One parameter is whole at a time, so the extra memory is that of the largest one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torchtitan.components.checkpointer.utils import canonical_fqn
from torchtitan.protocols.module import Module

Initializer = Callable[[torch.Tensor], object]


def seed_parameters(model: torch.nn.Module, seed: int) -> None:
    """Make ``model.init_weights()`` draw each parameter from ``seed`` and its own name.

    Call it on a parallelized model (or a pipeline stage), before its weights are initialised.
    """
    for prefix, module in model.named_modules():
        if isinstance(module, Module) and module._param_init is not None:
            module._param_init = {
                name: _seeded(
                    initializer, seed, canonical_fqn(f"{prefix}.{name}" if prefix else name)
                )
                for name, initializer in module._param_init.items()
            }


def _seeded(initializer: Initializer, seed: int, name: str) -> Initializer:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    parameter_seed = int.from_bytes(digest[:8], "little") >> 1  # torch wants a signed 64-bit seed

    def initialize(parameter: torch.Tensor) -> None:
        devices = [] if parameter.device.type == "cpu" else [parameter.device]
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(parameter_seed)
            # A no-op initializer (of a tied weight) must leave the parameter as it is.
            version = whole._version
            initializer(whole)
        if whole._version == version:
            return
        with torch.no_grad():
            if isinstance(parameter, DTensor):
                local, part = parameter.to_local(), part_of(whole, parameter)
                assert local.shape == part.shape, "copying would repeat what it has too few of"
                local.copy_(part)
            else:
                parameter.copy_(whole)

    return initialize


def part_of(whole: torch.Tensor, parameter: DTensor) -> torch.Tensor:
    """Return what of ``whole`` is this rank's of ``parameter``.

    DTensor's own copy refuses a dimension that two axes of the mesh divide among more ranks than it
    has rows, such as a number a head: some ranks then have none.
    """
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, "the rank is not in the parameter's mesh"
    # A strided shard is FSDP's, of what the other axes have left of the same dimension.
    axes = sorted(
        range(mesh.ndim), key=lambda a: isinstance(parameter.placements[a], _StridedShard)
    )
    for axis in axes:
        placement = parameter.placements[axis]
        if isinstance(placement, Shard | _StridedShard):
            chunks = whole.chunk(mesh.size(axis), placement.dim)
            index = coordinate[axis]
            empty = whole.narrow(placement.dim, 0, 0)
            whole = chunks[index] if index < len(chunks) else empty
        else:
            assert isinstance(placement, Replicate), f"{placement} of a parameter"
    return whole
