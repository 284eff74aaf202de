"""Initialize weights independently of the layout.

torchtitan initializes every rank's shard with that rank's generator, so on a CPU, and under
pipeline parallelism on any device, another layout yields other weights. Here each parameter is
drawn whole, from a generator seeded with the run's seed and the parameter's name; every rank then
keeps its shard. One parameter is whole at a time, so the extra memory is that of the largest
parameter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.checkpointer.utils import canonical_fqn
from torchtitan.protocols.module import Module

from atom.titan.shards import part_of

Initializer = Callable[[torch.Tensor], object]


def seed_parameters(model: torch.nn.Module, seed: int) -> None:
    """Make ``model.init_weights()`` draw each parameter from ``seed`` and its name.

    Call it on a parallelized model (or a pipeline stage), before its weights are initialized.
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
    parameter_seed = int.from_bytes(digest[:8], "little") >> 1  # torch expects a signed 64-bit seed

    def initialize(parameter: torch.Tensor) -> None:
        devices = [] if parameter.device.type == "cpu" else [parameter.device]
        whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
        # For all kinds of devices, torch would keep the stack of each seeding.
        seed_generators = torch.manual_seed if devices else torch.default_generator.manual_seed
        with torch.random.fork_rng(devices=devices):
            seed_generators(parameter_seed)
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
