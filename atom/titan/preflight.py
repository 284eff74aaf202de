"""Everything that can be known, and refused, before there are ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.host import Host
from atom.run import Resolved, Run
from atom.select import Selection
from atom.titan import device


@dataclass(frozen=True)
class Preflight:
    """The run with ``resolved`` filled in, and what the screen tells of it."""

    run: Run
    place: Path
    parameters: int
    seq_len: int
    steps: int
    schedule: str | None
    kernels: dict[str, tuple[str, str]]
    """operation -> (kernel, package)"""

    @property
    def resolved(self) -> Resolved:
        assert self.run.resolved is not None
        return self.run.resolved


def preflight(
    run: Run,
    selection: Selection,
    host: Host,
    place: Path,
    *,
    vocab_size: int,
    joined: int | None,
) -> Preflight:
    """Resolve ``run`` and refuse it if it cannot train.

    Args:
        run: as composed.
        selection: its components.
        host: the plugins.
        place: where the run folder will be; nothing is written there.
        vocab_size: of the prepared tokenizer.
        joined: number of ranks that a launcher around ATOM has started, if one has.

    Raises:
        UserError: for anything that torchtitan or a plugin would refuse.
    """
    kind = device.pick(run.device)
    device.use(kind)

    import torch

    from atom.titan import checks, kernels, layout, trainer_config

    available = torch.cuda.device_count() if kind == "cuda" else device.cores()
    parallelism, world_size = layout.resolve(run, available=available, joined=joined)
    if kind == "cuda" and joined is None:
        layout.check_gpus(world_size, available)
    training = trainer_config.training_section(run, kind)
    parts = trainer_config.model_parts(selection, vocab_size, training.seq_len)
    degree = layout.data_parallel_degree(parallelism)
    global_batch_size = checks.global_batch_size(
        training, degree, local_given="local_batch_size" in run.training
    )
    chosen = kernels.choose(
        run.kernels,
        host,
        device.describe(kind),
        context_parallel=parallelism.context_parallel_degree > 1,
    )
    resolved = run.model_copy(
        update={
            "run": run.run.model_copy(update={"dir": place}),
            "resolved": Resolved(
                device=kind,
                world_size=world_size,
                vocab_size=vocab_size,
                global_batch_size=global_batch_size,
                degrees={name: getattr(parallelism, name) for name in layout.DEGREES},
                kernels={choice.operation: choice.kernel.declaration.name for choice in chosen},
            ),
        }
    )
    if "local_batch_size" not in run.training:
        training.local_batch_size = global_batch_size // degree
    checks.check(training, parallelism, parts.model)
    config = trainer_config.trainer_config(resolved, selection, host, place)
    checks.check_together(config)
    pipelined = parallelism.pipeline_parallel_degree > 1
    return Preflight(
        run=resolved,
        place=place,
        parameters=_parameters(config),
        seq_len=config.training.seq_len,
        steps=config.training.steps,
        schedule=parallelism.pipeline_parallel_schedule if pipelined else None,
        kernels={
            choice.operation: (choice.kernel.declaration.name, choice.kernel.plugin.package)
            for choice in chosen
        },
    )


def _parameters(config: Any) -> int:
    """Return the number of parameters, counted on the meta device."""
    import torch

    with torch.device("meta"):
        model = config.model_spec.model.build()
    return sum(parameter.numel() for parameter in model.parameters())
