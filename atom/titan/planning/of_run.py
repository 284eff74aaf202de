"""Estimate a run of the past from its ``run.yaml``, without its data and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from atom.errors import UserError
from atom.plan.device import DeviceDescription
from atom.plan.estimate import Estimate
from atom.plan.model import ModelDescription
from atom.recipe.run import Run
from atom.registry.host import Host
from atom.registry.select import select
from atom.titan.boot import boot


@dataclass(frozen=True)
class Known:
    """What is known of a run of the past."""

    estimate: Estimate
    model: ModelDescription
    device: DeviceDescription


def estimate_of_run(run: Run, device: DeviceDescription | None = None) -> Known:
    """Estimate ``run`` on ``device``; on this machine's device by default.

    Raises:
        UserError: the run never started, or its plugins are missing.
    """
    if run.resolved is None:
        raise UserError("the run never started, so its layout is unknown")
    boot("cpu")
    from atom.recipe import batches
    from atom.titan import translate
    from atom.titan.checks import batch, layout
    from atom.titan.compat.device import describe
    from atom.titan.planning import planning
    from atom.titan.trainer_config import model_parts

    target = device or describe(run.resolved.device)
    selection = select(run, Host.load())
    ranks = run.resolved.world_size
    training = translate.training(run.training, target.kind)
    parallelism, _ = layout.resolve(run, available=ranks, joined=ranks)
    if run.training.local_batch_size is None:
        training = batch.shared(training, parallelism, batches.batches(run))
    parts = model_parts(selection, run.resolved.vocab_size, training.seq_len)
    model = planning.description(
        parts, training, enable_sequence_parallel=parallelism.enable_sequence_parallel
    )
    estimate = planning.estimate_of(
        run,
        selection,
        model,
        parts.model,
        target,
        parallelism,
        training,
        global_batch_size=run.resolved.global_batch_size,
        averages=len(selection.averages()),
    )
    return Known(estimate, model, target)
