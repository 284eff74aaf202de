"""Override torchtitan's container of optimizers with torch's implementations of Adam and AdamW.

torchtitan's own node uses the fused one, which is also the only one for bfloat16 moments with
float32 parameters (``optimizer.state_dtype=bfloat16``).
"""

from __future__ import annotations

from typing import Any

from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config.override import derive, override

from atom.errors import UserError

_STATES_IN_BFLOAT16 = "fused_opt_states_bf16"


@override(target=OptimizersContainer.Config, description="a parameter after the other")
def for_loop(node: OptimizersContainer.Config) -> Any:
    return _with("for-loop", node, "reference")


@override(target=OptimizersContainer.Config, description="an operation for all parameters")
def foreach(node: OptimizersContainer.Config) -> Any:
    return _with("foreach", node, "foreach")


def _with(implementation: str, node: OptimizersContainer.Config, kernel: str) -> Any:
    if node.implementation == _STATES_IN_BFLOAT16:
        raise UserError(
            "keeps moments in the dtype of the parameters, and optimizer.state_dtype=bfloat16",
            valid="fused, or optimizer.state_dtype=null",
            key="kernels.optimizer_step",
            value=kernel,
        )
    return derive(node, type(node), implementation=implementation)
