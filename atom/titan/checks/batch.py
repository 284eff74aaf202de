"""Check that the global batch divides evenly among ranks and passes."""

from __future__ import annotations

from torchtitan.config import ParallelismConfig, TrainingConfig

from atom.errors import UserError
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
    if wanted % unit:
        what = (
            f"local_batch_size {local} x {degree} data-parallel ranks"
            if plan.local_given
            else f"the {degree} data-parallel ranks"
        )
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


def shared(training: TrainingConfig, parallelism: ParallelismConfig) -> TrainingConfig:
    """Return ``training`` with each rank's share of the global batch as its local batch."""
    share = global_batch_size(training, parallelism) // data_parallel_degree(parallelism)
    return translate.changed(training, "training", local_batch_size=share)
