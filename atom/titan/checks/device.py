"""Check settings that only a GPU supports."""

from __future__ import annotations

from atom.errors import UserError
from atom.titan.checks.plan import Plan


def check_offload(plan: Plan) -> None:
    """Refuse to move memory to the CPU on a CPU.

    Raises:
        UserError: the run is on a CPU.
    """
    if plan.training.enable_cpu_offload and plan.kind == "cpu":
        raise UserError(
            "moves a GPU's memory to the CPU, and this run is on the CPU already",
            valid="false",
            key="training.enable_cpu_offload",
            value=True,
        )


def check_state_dtype(plan: Plan) -> None:
    """Refuse moments in a dtype for which a CPU has no fused step.

    Raises:
        UserError: the run is on a CPU.
    """
    wanted, dtype = plan.run.optimizer.state_dtype, plan.training.dtype
    if wanted not in (None, dtype) and plan.kind == "cpu":
        raise UserError(
            "only a GPU has a fused step for moments in another dtype than that of the parameters, "
            f"training.dtype={dtype}",
            valid="null",
            key="optimizer.state_dtype",
            value=wanted,
        )
