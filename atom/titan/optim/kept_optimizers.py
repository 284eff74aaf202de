"""A container of optimizers that keeps the run's settings when it loads a checkpoint.

A checkpoint contains the settings of the run that saved it (``lr``, ``weight_decay``, ``betas``,
``fused``, …) beside its moments. The moments are loaded; the settings stay this run's. torch would
also cast loaded moments to the dtype of their parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer

STATES_IN_BFLOAT16 = "fused_opt_states_bf16"
"""torchtitan's implementation with bfloat16 moments for float32 parameters."""

_SETTINGS = "param_groups."
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class StateOnly(Stateful):
    """The state of a container of optimizers without its settings, for loading a checkpoint."""

    def __init__(self, optimizers: OptimizersContainer) -> None:
        self._optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        state = self._optimizers.state_dict()
        return {name: value for name, value in state.items() if not name.startswith(_SETTINGS)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._optimizers.load_state_dict(state_dict | settings(self._optimizers))


def settings(optimizers: OptimizersContainer) -> dict[str, Any]:
    """Return the settings of a container: the options of each parameter group."""
    state = optimizers.state_dict()
    return {name: value for name, value in state.items() if name.startswith(_SETTINGS)}


def follow_schedule(schedulers: LRSchedulersContainer) -> None:
    """Set every group's learning rate for the current step of its scheduler.

    A scheduler that has loaded its step updates the groups only after the next step.
    """
    for scheduler in schedulers:
        groups = scheduler.optimizer.param_groups
        for group, rate in zip(groups, scheduler.get_last_lr(), strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class KeptOptimizers(OptimizersContainer):
    """A container that keeps its settings, the device of step counts, and the moments' dtype."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    def __init__(self, config: Config, *, model_parts: list[torch.nn.Module]) -> None:
        super().__init__(config, model_parts=model_parts)
        self._in_bfloat16 = config.implementation == STATES_IN_BFLOAT16

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = settings(self)
        # torch would cast all moments to float32 at once, so they are restored afterwards.
        moments = {name: tensor for name, tensor in state_dict.items() if self._is_half(name)}
        rest = {name: value for name, value in state_dict.items() if name not in moments}
        super().load_state_dict(rest | own)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
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
    """Move the step count to the device if the step is fused, and to the CPU if not."""
    if "step" in state:
        step = state["step"]
        step = step.to_local() if isinstance(step, DTensor) else step
        state["step"] = step.to(parameter.device if fused else "cpu")
