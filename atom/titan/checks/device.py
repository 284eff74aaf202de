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
