"""Check that a run supports its reactions to faults."""

from __future__ import annotations

from atom.errors import UserError
from atom.plugin import Dataset
from atom.titan.checks.plan import Plan


def check_replicas(plan: Plan) -> None:
    """Refuse to compare replicas where no two ranks hold copies of a parameter.

    Raises:
        UserError: names layouts that have copies.
    """
    layout, interval = plan.parallelism, plan.run.faults.replica_check_interval
    copies = layout.data_parallel_replicate_degree * layout.tensor_parallel_degree
    if interval and copies == 1:
        raise UserError(
            "no two ranks hold copies of a parameter in this layout",
            valid="0, or a layout with "
            "data_parallel_replicate_degree or tensor_parallel_degree above 1",
            key="faults.replica_check_interval",
            value=interval,
        )


def check_replay(plan: Plan) -> None:
    """Refuse the replay check in a run with steps that are not reproducible.

    Raises:
        UserError: names what makes them reproducible.
    """
    run, interval = plan.run, plan.run.faults.replay_check_interval
    if not interval:
        return
    if plan.kind != "cpu" and not run.debug.deterministic:
        raise UserError(
            "a GPU repeats a step bit for bit only with debug.deterministic=true",
            valid="that, or 0",
            key="faults.replay_check_interval",
            value=interval,
        )
    if not run.training.engine.get("disable_cuda_graphs"):
        raise UserError(
            "a step in a CUDA graph cannot be recomputed",
            valid="0, or training.disable_cuda_graphs=true",
            key="faults.replay_check_interval",
            value=interval,
        )


def check_rollback(plan: Plan) -> None:
    """Refuse to go back without checkpoints, or with a loader that cannot leave data out.

    Raises:
        UserError: names the reactions that the run supports.
    """
    own_loader = plan.selection[Dataset].declaration.build is not None
    for name in ("non_finite", "spike"):
        if getattr(plan.run.faults, name) != "rollback":
            continue
        problem = None
        if not plan.run.checkpoint.enable:
            problem = "there is no checkpoint to roll back to with checkpoint.enable=false"
        elif own_loader:
            problem = "the data loader of this dataset cannot skip data"
        if problem is not None:
            raise UserError(problem, valid="skip, stop", key=f"faults.{name}", value="rollback")
