"""Build a few ranks of a run of any size on one machine, without starting it.

The dry run does all that a run does before its first step: composition, kernels, mesh, pipeline
split, tensor parallelism, activation checkpointing, FSDP. Only the process group is torch's fake
one, and tensors are on the meta device. A rank's shards are therefore counted, not estimated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io.process import Child
from atom.plan.device import GIB, DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.layout import BYTES
from atom.plan.memory import FLOAT32, Memory, memory, reserved
from atom.plan.model import Count, ModelDescription
from atom.plugin import Contents, PreparedTokenizer
from atom.recipe.run import DEGREES, Run
from atom.registry.host import Host
from atom.registry.opening import Chosen
from atom.registry.select import Selection
from atom.run_dir.resume import Resumption
from atom.titan.boot import boot
from atom.titan.preflight import preflight
from atom.titan.preflight.preflight import Preflight


@dataclass(frozen=True)
class Rank:
    """One rank as built.

    Attributes:
        rank: its global number.
        pipeline_rank: its number in the pipeline.
        parts: parts of the model that it holds, in order.
        numel: elements in its shards.
        parameters: number of parameters that the shards belong to.
        memory: shards as counted, the rest as estimated.
    """

    rank: int
    pipeline_rank: int
    parts: tuple[str, ...]
    numel: int
    parameters: int
    memory: Memory


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run: ``components`` are the run's, and those that they name."""

    ready: Preflight
    components: list[Chosen[Any]]
    device: DeviceDescription
    model: ModelDescription
    estimate: Estimate
    ranks: list[Rank]

    @property
    def worst(self) -> Rank:
        return max(self.ranks, key=lambda rank: rank.memory.total)

    def check(self) -> None:
        """Refuse a run that does not fit the device's memory.

        Raises:
            UserError: names the rank and the memory that it needs.
        """
        worst = self.worst
        if worst.memory.total <= self.device.memory:
            return
        largest = max(
            (
                "parameters",
                "gradients",
                "optimizer",
                "gathered",
                "reduced",
                "activations",
                "working",
                "averages",
            ),
            key=lambda name: getattr(worst.memory, name),
        )
        raise UserError(
            f"rank {worst.rank} needs {worst.memory.total / GIB:.1f} GiB, most of it "
            f"{LABELS[largest]}, and one {self.device.name or self.device.kind} has "
            f"{self.device.memory / GIB:.1f} GiB",
            valid="more ranks or higher degrees, activation_checkpoint.mode=full, a smaller local "
            "batch, or parallelism=auto",
            key="world_size",
            value=self.ready.resolved.world_size,
        )


LABELS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "gathered": "gathered parameters",
    "reduced": "gradients before reduction",
    "activations": "activations",
    "working": "recomputation or logits",
    "averages": "averaged weights",
    "reserve": "allocator's reserve",
}


def dry_run(
    run: Run,
    selection: Selection,
    host: Host,
    *,
    tokenizer: PreparedTokenizer,
    contents: Contents | None = None,
    resumption: Resumption | None = None,
) -> DryRun:
    """Build ``run`` for a few of its ranks.

    Args:
        run: as composed.
        selection: its components.
        host: the plugins.
        tokenizer: the prepared tokenizer.
        contents: the dataset's description of its contents.
        resumption: the checkpoint of another run to begin from.

    Raises:
        UserError: the run would be refused. :meth:`DryRun.check` checks the memory.
    """
    boot("cpu")
    from atom.titan.planning import planning

    plan = preflight.plan(
        run,
        selection,
        host,
        Path("dry_run"),  # the place of the run folder; nothing is written
        tokenizer=tokenizer,
        joined=run.world_size or run.launch.ranks,
        planned=planning.described(run),
        contents=contents,
        resumption=resumption,
    )
    ready = preflight.checked(plan)
    model, estimate = plan.description, plan.estimate
    pp = plan.degrees[DEGREES[3]]
    chosen = sorted({0, estimate.rank, pp // 2, pp - 1})
    each = plan.world_size // pp
    # torch keeps meshes until the process ends, so each rank is built in a separate process.
    children = [
        Child(partial(_built, plan.config, estimate, model, plan.device, number, number * each))
        for number in chosen
    ]
    return DryRun(
        ready=ready,
        components=list(selection.every()),
        device=plan.device,
        model=model,
        estimate=estimate,
        ranks=[child.result() for child in children],
    )


def _built(
    config: Any,
    estimate: Estimate,
    model: ModelDescription,
    planned: DeviceDescription,
    pipeline_rank: int,
    rank: int,
) -> Rank:
    """Build one rank of the run and count its shards."""
    from atom.titan.checks.engine import refused
    from atom.titan.checks.pretend import mesh, model_parts, pretending
    from atom.titan.optim.muon import is_matrix_of_layer

    with pretending(rank, estimate.layout.ranks):
        with refused():
            modules = model_parts(config, mesh(config, estimate.layout.ranks))
        held = [parameter for module in modules for parameter in module.parameters()]
        numel = sum(_local_numel(parameter) for parameter in held)
        names = [name for module in modules for name, _ in module.named_parameters()]
        trained = [_local_numel(parameter) for parameter in held if parameter.requires_grad]
        matrices = [
            _local_numel(parameter)
            for name, parameter in zip(names, held, strict=True)
            if parameter.requires_grad and is_matrix_of_layer(name, parameter.ndim)
        ]
    plain = memory(model, estimate.layout, rank=pipeline_rank)
    size = BYTES[estimate.layout.parameter_dtype]
    counted = replace(
        plain,
        parameters=numel * size,
        gradients=sum(trained) * size,
        optimizer=estimate.layout.optimizer_bytes(
            Count(sum(trained), len(trained)), Count(sum(matrices), len(matrices))
        ),
        averages=sum(trained) * FLOAT32 * estimate.layout.averages,
    )
    counted = replace(
        counted, reserve=round(counted.total * (reserved(estimate.layout, planned.reserve) - 1))
    )
    return Rank(
        rank=rank,
        pipeline_rank=pipeline_rank,
        parts=tuple(dict.fromkeys(_part(name) for name in names)),
        numel=numel,
        parameters=len(held),
        memory=counted,
    )


def _local_numel(parameter: Any) -> int:
    from torch.distributed.tensor import DTensor

    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return int(local.numel())


def _part(name: str) -> str:
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "layers" else words[0]
