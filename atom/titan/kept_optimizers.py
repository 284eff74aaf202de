"""torchtitan's container of optimizers, which stays what the run says when it loads a checkpoint.

A checkpoint holds the implementation of the run that saved it, ``fused`` or ``foreach``, among the
options of each group, and torch casts loaded moments to the dtype of their parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torchtitan.components.optimizer import OptimizersContainer

STATES_IN_BFLOAT16 = "fused_opt_states_bf16"
"""torchtitan's implementation with Adam's moments in bfloat16 beside parameters in float32."""

_IMPLEMENTATION = ("fused", "foreach")
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class KeptOptimizers(OptimizersContainer):
    """Keeps its implementation, the place of its counts of steps, and its moments' dtype."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    def __init__(self, config: Config, *, model_parts: list[torch.nn.Module]) -> None:
        super().__init__(config, model_parts=model_parts)
        self._in_bfloat16 = config.implementation == STATES_IN_BFLOAT16

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = [
            [{key: group[key] for key in _IMPLEMENTATION if key in group} for group in each]
            for each in (optimizer.param_groups for optimizer in self.optimizers)
        ]
        # torch would cast all moments to float32 at once: they are put in afterwards.
        moments = {name: tensor for name, tensor in state_dict.items() if self._is_half(name)}
        rest = {name: value for name, value in state_dict.items() if name not in moments}
        super().load_state_dict(rest)
        for optimizer, groups in zip(self.optimizers, own, strict=True):
            for group, kept in zip(optimizer.param_groups, groups, strict=True):
                group.update(kept)
                for name, parameter in zip(group["param_names"], group["params"], strict=True):
                    state = optimizer.state[parameter]
                    for key in _MOMENTS:
                        if (moment := moments.get(f"state.{name}.{key}")) is not None:
                            state[key] = moment.bfloat16()
                    _place_step(parameter, state, fused=group.get("fused"))

    def _is_half(self, name: str) -> bool:
        kept = self._in_bfloat16 and name.startswith("state.")
        return kept and name.rpartition(".")[2] in _MOMENTS


def _place_step(parameter: torch.Tensor, state: dict[str, Any], *, fused: bool | None) -> None:
    """A fused step counts on the device, the others on the CPU."""
    if "step" in state:
        step = state["step"]
        step = step.to_local() if isinstance(step, DTensor) else step
        state["step"] = step.to(parameter.device if fused else "cpu")
