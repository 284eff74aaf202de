"""Build one rank's model of a run of any size, without the other ranks and without values."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed import ParallelDims, utils
from torchtitan.tools.utils import set_default_dtype

from atom.errors import UserError
from atom.io.process import Child
from atom.titan import translate
from atom.titan.checks.engine import refused
from atom.titan.checks.plan import Plan
from atom.titan.compat.register_training import MESH_DEVICE


def check(plan: Plan) -> None:
    """Build the model as the ranks do; refuse a layout that fails or that changes the model.

    It changes if the shards of all ranks do not add up to the model. One layer of each kind is
    built, which takes 0.2 s. A dry run builds its ranks whole, later.

    Raises:
        UserError: names the tensor that would differ from the model's.
    """
    if plan.world_size > 1 and not plan.run.dry_run:
        check_built(plan.config, plan.model, plan.world_size)


def check_built(config: Any, model: nn.Module, world_size: int) -> None:
    """Build one layer of each kind of ``model`` as one of ``world_size`` ranks, in a child process.

    Raises:
        UserError: as :func:`check`.
    """
    # torch keeps meshes until the process ends.
    Child(partial(_build, config, _kinds(model), world_size)).result()


def _build(config: Any, layers: list[int], world_size: int) -> None:
    # Stages consist of whole layers, so one stage can stand for all; and shared-memory tensors need
    # the devices.
    degree = config.parallelism.pipeline_parallel_degree
    together = translate.changed(
        config.parallelism, "parallelism", pipeline_parallel_degree=1, enable_fsdp_symm_mem=False
    )
    config = replace(config, parallelism=together)
    whole = config.model_spec.model
    with pretending(0, world_size // degree), refused():
        dims = mesh(config, world_size // degree)
        if 0 < len(layers) < len(whole.layers):
            shorter = replace(whole, layers=[whole.layers[number] for number in layers])
            config.model_spec.model = shorter
            try:
                model_parts(config, dims)
                return
            except UserError:
                raise
            except Exception:  # layers may depend on each other
                config.model_spec.model = whole
        model_parts(config, dims)


def _kinds(model: nn.Module) -> list[int]:
    """Return the index of the first layer of each kind: equal modules and shapes."""
    layers = getattr(model, "layers", None)
    kinds: dict[Any, int] = {}
    for number, layer in enumerate(layers.values() if isinstance(layers, nn.ModuleDict) else ()):
        modules = tuple((name, type(module)) for name, module in layer.named_modules())
        shapes = tuple(tuple(parameter.shape) for parameter in layer.parameters())
        kinds.setdefault((modules, shapes), number)
    return list(kinds.values())


def mesh(config: Any, world_size: int) -> ParallelDims:
    """Return the mesh of ``config``, a ``Trainer.Config``; the process group must exist."""
    dims = ParallelDims.from_config(config.parallelism, world_size)
    utils.set_spmd_backend(config.parallelism.spmd_backend)
    dims.build_mesh()
    return dims


def model_parts(config: Any, dims: ParallelDims) -> list[Any]:
    """Return this rank's parallelized model parts, as the trainer builds them, on the meta device.

    ``config`` is a ``Trainer.Config`` that :func:`atom.titan.checks.engine.assemble` has completed,
    ``dims`` its mesh.
    """
    spec = config.model_spec
    with torch.device("meta"), set_default_dtype(TORCH_DTYPE_MAP[config.training.dtype]):
        model = spec.model.build()
    common = {
        "parallel_dims": dims,
        "training": config.training,
        "parallelism": config.parallelism,
        "compile_config": config.compile,
        "ac_config": config.activation_checkpoint,
        "dump_folder": config.dump_folder,
    }
    if not dims.pp_enabled:
        return [spec.parallelize_fn(model, **common)]
    _, parts, _, _ = spec.pipelining_fn(
        model,
        device=torch.device("cpu"),
        model_config=spec.model,
        parallelize_fn=spec.parallelize_fn,
        loss_fn=config.loss.build(compile_config=config.compile),
        **common,
    )
    return list(parts)


@contextmanager
def pretending(rank: int, world_size: int) -> Iterator[None]:
    """Act as rank ``rank`` of ``world_size`` with a fake process group, for any device."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        with MESH_DEVICE.replaced("cpu"):
            yield
    finally:
        dist.destroy_process_group()
        logging.disable(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
