"""Check that the global batch divides evenly among ranks and passes."""

from __future__ import annotations

from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.errors import UserError
from atom.recipe.batches import Batches
from atom.titan import translate
from atom.titan.checks.layout import data_parallel_degree
from atom.titan.checks.plan import LaidOut


def check(plan: LaidOut) -> None:
    """Refuse a global batch that does not divide evenly.

    Raises:
        UserError: names what must divide it.
    """
    wanted, local = plan.training.global_batch_size, plan.training.local_batch_size
    if wanted == -1:
        return
    degree = data_parallel_degree(plan.parallelism)
    unit = local * degree if plan.local_given else degree
    what = (
        f"local_batch_size {local} x {degree} data-parallel ranks"
        if plan.local_given
        else f"the {degree} data-parallel ranks"
    )
    for size in plan.batches.sizes[:-1]:
        if size % unit:
            raise UserError(
                f"has batches of {size} sequences, and each must be a multiple of {unit} ({what})",
                key="training.batch_schedule",
            )
    if wanted % unit:
        raise UserError(
            f"must be a multiple of {unit} ({what})",
            key="training.global_batch_size",
            value=wanted,
        )


def global_batch_size(training: TrainingConfig, parallelism: ParallelismConfig) -> int:
    """Return the sequences of one step.

    Without ``training.local_batch_size`` each rank runs its share of the global batch in one pass;
    with both, gradients are accumulated until the global batch is reached.
    """
    wanted = training.global_batch_size
    if wanted == -1:
        return training.local_batch_size * data_parallel_degree(parallelism)
    return wanted


def shared(
    training: TrainingConfig, parallelism: ParallelismConfig, batches: Batches
) -> TrainingConfig:
    """Return ``training`` with each rank's share of the global batch as its local batch; with a
    schedule, the largest one that divides the share of each size.
    """
    whole = global_batch_size(training, parallelism) if batches.constant else batches.unit
    share = max(whole // data_parallel_degree(parallelism), 1)
    return translate.changed(training, "training", local_batch_size=share)
