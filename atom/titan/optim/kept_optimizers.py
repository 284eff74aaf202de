"""torchtitan's container of optimizers, which stays what the run says when it loads a checkpoint.

A checkpoint holds the settings of the run that saved it (``lr``, ``weight_decay``, ``betas``,
``fused``, …) beside its moments. The moments are loaded; the settings are the run's own. And torch
casts loaded moments to the dtype of their parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer

STATES_IN_BFLOAT16 = "fused_opt_states_bf16"
"""torchtitan's implementation with Adam's moments in bfloat16 beside parameters in float32."""

_SETTINGS = "param_groups."
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class StateOnly(Stateful):
    """The state of a container of optimizers without its settings, to load a checkpoint into."""

    def __init__(self, optimizers: OptimizersContainer) -> None:
        self._optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        state = self._optimizers.state_dict()
        return {name: value for name, value in state.items() if not name.startswith(_SETTINGS)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._optimizers.load_state_dict(state_dict | settings(self._optimizers))


def settings(optimizers: OptimizersContainer) -> dict[str, Any]:
    """Return the part of a container's state that the run decides: the options of each group."""
    state = optimizers.state_dict()
    return {name: value for name, value in state.items() if name.startswith(_SETTINGS)}


def follow_schedule(schedulers: LRSchedulersContainer) -> None:
    """Give every group the learning rate of the step that its scheduler stands at.

    A scheduler that has loaded its step changes the groups after the next one only.
    """
    for scheduler in schedulers:
        groups = scheduler.optimizer.param_groups
        for group, rate in zip(groups, scheduler.get_last_lr(), strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class KeptOptimizers(OptimizersContainer):
    """Keeps its settings, the place of its counts of steps, and its moments' dtype."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    def __init__(self, config: Config, *, model_parts: list[torch.nn.Module]) -> None:
        super().__init__(config, model_parts=model_parts)
        self._in_bfloat16 = config.implementation == STATES_IN_BFLOAT16

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = settings(self)
        # torch would cast all moments to float32 at once: they are put in afterwards.
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
    """A fused step counts on the device, the others on the CPU."""
    if "step" in state:
        step = state["step"]
        step = step.to_local() if isinstance(step, DTensor) else step
        state["step"] = step.to(parameter.device if fused else "cpu")
