"""Resolve the number of ranks and the degrees of a run's mesh."""

from __future__ import annotations

import math

from torchtitan.config import ParallelismConfig

from atom.errors import UserError
from atom.recipe.run import DEGREES, Run
from atom.titan import translate
from atom.titan.checks.plan import Plan


def resolve(
    run: Run, *, available: int, joined: int | None = None
) -> tuple[ParallelismConfig, int]:
    """Return the parallelism section with every degree known, and the number of ranks.

    Args:
        run: the run; at most one of its degrees is -1, for the remaining ranks.
        available: ranks to use by default: the number of GPUs, or of the CPU's cores.
        joined: ranks that an outer launcher (torchrun, Slurm) has already started.

    Raises:
        UserError: a degree is impossible, or the layout does not fit the ranks.
    """
    config = translate.parallelism(run.parallelism)
    degrees = {name: getattr(config, name) for name in DEGREES}
    left = [name for name, degree in degrees.items() if degree == -1]
    if len(left) > 1:
        raise UserError(
            f"only one degree can be -1, and parallelism.{left[0]} is -1 already",
            key=f"parallelism.{left[1]}",
            value=-1,
        )
    known = math.prod(degree for degree in degrees.values() if degree != -1)
    wanted = joined or run.launch.ranks
    ranks = wanted or (max(available // known, 1) * known if left else known)
    source, key = "launch.ranks gives", "launch.ranks"
    if run.world_size:
        source, key = "world_size gives", "world_size"
    elif joined:
        source, key = "the launcher around it started", ""
        if run.launcher.gpus_per_node:
            source = "launcher.nodes x launcher.gpus_per_node give"
    layout = " x ".join(
        f"{name.removesuffix('_degree')} {'?' if degree == -1 else degree}"
        for name, degree in degrees.items()
        if degree != 1
    )
    if left and ranks % known:
        raise UserError(
            f"the layout ({layout}) needs a multiple of {known} ranks, and {source} {ranks}",
            key=f"parallelism.{left[0]}",
            value=-1,
        )
    if left:
        config = translate.changed(config, "parallelism", **{left[0]: ranks // known})
    elif ranks != known:
        raise UserError(
            f"the layout ({layout or 'one rank'}) needs {known} rank{'s' * (known > 1)}, and "
            f"{source} {ranks}",
            valid=f"{known}{_or_what_is_left(degrees, known, ranks)}",
            key=key or None,
            value=ranks if key else ...,
        )
    _check_experts(config)
    return config, ranks


def _or_what_is_left(degrees: dict[str, int], known: int, ranks: int) -> str:
    """Return a hint to use data parallelism over the remaining ranks, if they divide evenly."""
    name = "data_parallel_shard_degree"
    if ranks % (known // degrees[name]):
        return ""
    return f", or parallelism.{name}=-1 to use the remaining ranks"


def _check_experts(config: ParallelismConfig) -> None:
    """Refuse a degree of expert parallelism that does not divide the ranks it is taken from."""
    degree = config.expert_parallel_degree
    borrowed = ("data_parallel_shard_degree", "context_parallel_degree", "tensor_parallel_degree")
    ranks = math.prod(getattr(config, name) for name in borrowed)
    if degree < 1 or ranks % degree:
        raise UserError(
            f"must divide the {ranks} ranks that share the experts: "
            + " x ".join(f"{name} {getattr(config, name)}" for name in borrowed),
            key="parallelism.expert_parallel_degree",
            value=degree,
        )


def data_parallel_degree(config: ParallelismConfig) -> int:
    """Return the number of ranks that train on different sequences."""
    return config.data_parallel_replicate_degree * config.data_parallel_shard_degree


def check_gpus(plan: Plan) -> None:
    """Refuse more ranks than GPUs."""
    if plan.kind == "cuda" and plan.joined is None and plan.world_size > plan.available:
        raise UserError(
            f"the layout needs {plan.world_size} ranks and this machine has {plan.available} GPUs; "
            "start it under torchrun or Slurm on more machines, or with device=cpu",
            key="launch.ranks",
            value=plan.world_size,
        )
