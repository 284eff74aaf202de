"""Resolve a run and refuse errors before ranks start."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.kernels.choose import Choice
from atom.plan.device import DeviceDescription
from atom.plugin import Architecture, Contents
from atom.recipe import effects, lengths
from atom.recipe.effect_rules import Situation
from atom.recipe.run import DEGREES, Run
from atom.recipe.sections import Read, Resolved
from atom.registry.host import Host
from atom.registry.select import Selection
from atom.titan.boot import boot
from atom.titan.compat import device


@dataclass(frozen=True)
class Preflight:
    """A run with ``resolved`` filled in, and what the screen shows about it."""

    run: Run
    place: Path
    parameters: int
    seq_len: int
    steps: int
    schedule: str | None
    kernels: dict[str, tuple[str, str]]
    """operation -> (kernel, package)"""
    explanation: str = ""
    """Why the layout was chosen, if a strategy chose it."""
    warning: str = ""
    """Warnings about resources that may run out, and notes about the initial weights."""

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
    planned: DeviceDescription | None = None,
    contents: Contents | None = None,
) -> Preflight:
    """Resolve ``run``; refuse it if it cannot train.

    Args:
        run: as composed.
        selection: its components.
        host: the plugins.
        place: the path of the run folder; nothing is written there.
        vocab_size: of the prepared tokenizer.
        joined: number of ranks that an outer launcher has started; None without one.
        planned: the device of another machine, for a run that will not be started here.
        contents: the dataset's description of its contents.

    Raises:
        UserError: torchtitan or a plugin would refuse the run.
    """
    kind = planned.kind if planned else _device(run, joined)
    boot("cpu" if planned else kind)

    import torch

    from atom.titan import kernels, saved_model, trainer_config, translate, windows
    from atom.titan.checkpoint import disk_space
    from atom.titan.checks import (
        division,
        engine,
        layout,
        output_layers,
        pretend,
        requirements,
        shardings,
    )
    from atom.titan.planning import planning
    from atom.titan.train.callbacks import CALLBACKS
    from atom.titan.weights import initial_load

    described = planned or device.describe(kind)
    available = torch.cuda.device_count() if kind == "cuda" else device.cores()
    training = translate.training(run.training, kind)
    run, explanation = planning.choose(
        run,
        selection,
        trainer_config.model_parts(selection, vocab_size, training.seq_len),
        training,
        described,
        ranks=joined or run.launch.ranks or available,
    )
    parallelism, world_size = layout.resolve(run, available=available, joined=joined)
    degrees = {name: getattr(parallelism, name) for name in DEGREES}
    effects.check(run, Situation(degrees, kind), run.given)
    lengths.check(run, parallelism.context_parallel_degree)
    if kind == "cuda" and joined is None:
        layout.check_gpus(world_size, available)
    training = translate.training(run.training, kind)
    run, notes = initial_load.resolve(
        run,
        trainer_config.model_parts(selection, vocab_size, training.seq_len),
        training,
        place,
        host,
        vocab_size=vocab_size,
    )
    parts = trainer_config.model_parts(selection, vocab_size, training.seq_len)
    degree = layout.data_parallel_degree(parallelism)
    global_batch_size = engine.global_batch_size(
        training, degree, local_given=run.training.local_batch_size is not None
    )
    if run.training.local_batch_size is None:
        training.local_batch_size = global_batch_size // degree
    engine.check(training, parallelism, parts.model, selection[Architecture].config)
    division.division(
        engine.sharded(parts.model, training, parallelism),
        division.shapes_of(saved_model.on_meta(parts.model)),
    ).check(parallelism, selection[Architecture].config)

    def choose(unfit: Mapping[tuple[str, str], str]) -> tuple[Choice, ...]:
        where = kernels.situation(
            parts.model,
            host,
            described,
            run=run,
            training=training,
            vocab_size=vocab_size,
            tensor_parallel=parallelism.tensor_parallel_degree,
            context_parallel=parallelism.context_parallel_degree,
            expert_parallel=parallelism.expert_parallel_degree,
            unfit=unfit,
        )
        return kernels.choose(run.kernels, host, where, loss_chunks=run.loss.num_chunks)

    def put_together(chosen: tuple[Choice, ...]) -> tuple[Run, Any, Any]:
        """Return the run, its ``Trainer.Config`` and its model, with the kernels applied."""
        resolved = Resolved(
            device=kind,
            world_size=world_size,
            vocab_size=vocab_size,
            data=Read.model_validate(contents, from_attributes=True) if contents else None,
            global_batch_size=global_batch_size,
            degrees=degrees,
            kernels={choice.operation: choice.name for choice in chosen},
            kernels_rejected={
                choice.operation: dict(choice.rejected) for choice in chosen if choice.rejected
            },
            kernels_not_tried={
                choice.operation: dict(choice.passed_over)
                for choice in chosen
                if choice.passed_over
            },
            callbacks=[callback.name for callback in CALLBACKS],
        )
        folder = run.run.model_copy(update={"dir": place})
        whole = run.model_copy(update={"run": folder, "resolved": resolved})
        requirements.check(whole, training, parallelism, kind)
        config = trainer_config.trainer_config(whole, selection, host, place)
        engine.check_together(config)
        model = saved_model.on_meta(config.model_spec.model)
        output_layers.check(config, model)
        partial = {
            operation: f"{number} of {total}"
            for operation, (number, total) in config.replaced.items()
            if number < total
        }
        update = {"resolved": resolved.model_copy(update={"kernels_partial": partial})}
        return whole.model_copy(update=update), config, model

    chosen, (resolved, config, model) = kernels.settle(choose, put_together)
    requirements.check_load_balancer(parallelism, config.model_spec.model)
    requirements.check_experts(run, config.model_spec.model)
    requirements.check_recomputed(run, model)
    windows.check(config.model_spec.model, model)
    shardings.check(model, parallelism, world_size, run.architecture.name)
    if world_size > 1 and not run.dry_run:
        pretend.check(config, model, world_size)
    pipelined = parallelism.pipeline_parallel_degree > 1
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Preflight(
        run=resolved,
        place=place,
        parameters=parameters,
        seq_len=config.training.seq_len,
        steps=config.training.steps,
        schedule=parallelism.pipeline_parallel_schedule if pipelined else None,
        kernels={
            choice.operation: (choice.name, choice.kernel.plugin.package) for choice in chosen
        },
        explanation=explanation,
        warning="\n".join(
            filter(None, [*notes, "" if run.dry_run else disk_space.check(config, place, model)])
        ),
    )


def _device(run: Run, joined: int | None) -> str:
    """Return the kind of device; for ``auto``, a CPU if the layout needs more GPUs than there are.

    So a first run of 16 ranks works on a laptop with one GPU, too.
    """
    import torch

    kind = device.pick(run.device)
    if run.device == "auto" and kind == "cuda" and joined is None:
        degrees = [getattr(run.parallelism, name) or 1 for name in DEGREES]
        known = math.prod(n for n in degrees if n > 0)
        if (run.launch.ranks or known) > torch.cuda.device_count():
            return "cpu"
    return kind
