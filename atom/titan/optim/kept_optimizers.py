"""A container of optimizers that keeps the run's settings when it loads a checkpoint.

A checkpoint contains the settings of the run that saved it (``lr``, ``weight_decay``, ``betas``,
``fused``, …) beside its moments. The moments are loaded; the settings stay this run's. torch would
also cast loaded moments to the dtype of their parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor
from torchtitan.components.checkpointer.utils import canonical_fqn
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer

from atom.plugin import OptimizerPart
from atom.recipe.optimizers import Optimizer

STATES_IN_BFLOAT16 = "fused_opt_states_bf16"
"""torchtitan's implementation with bfloat16 moments for float32 parameters."""

_SETTINGS = "param_groups."
_STEP = "step"


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
    """A container of the parts of an optimizer.

    It keeps its settings, the device of step counts, and the dtype of the state.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        parts: tuple[OptimizerPart, ...]
        section: Optimizer

        def to_dict(self) -> dict[str, Any]:
            """Return the config as data, for ``debug.print_config``."""
            return {
                "implementation": self.implementation,
                "param_groups": [asdict(group) for group in self.param_groups],
                "section": self.section.model_dump(mode="json"),
            }

    def __init__(self, config: Config, *, model_parts: list[torch.nn.Module]) -> None:
        self._parts, self._section = config.parts, config.section
        super().__init__(config, model_parts=model_parts)

    def _resolve_optimizer_factory(self, name: str) -> Any:
        return self._parts[int(name)].optimizer

    def _build_param_groups(
        self, model: torch.nn.Module, _configs: Any, implementation: dict[str, Any]
    ) -> Any:
        """Return the groups of each part by its number, and their descriptions."""
        groups: dict[int, dict[tuple[Any, ...], dict[str, Any]]] = {}
        of = roles(model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            named = canonical_fqn(name)
            number = part_of(self._parts, named, parameter.shape)
            assert number is not None, f"no part of the optimizer updates {named}"
            part = self._parts[number]
            group = self._section.group(named)
            options = dict(part.options)
            if group is not None:
                options["lr"] *= group.lr_factor
                if group.weight_decay is not None:
                    options["weight_decay"] = group.weight_decay
            if of.get(name) in self._section.no_decay:
                options["weight_decay"] = 0.0
            if issubclass(part.optimizer, torch.optim.Adam):
                options = implementation | options
            key = (
                group is not None and group.lr_factor != 1,
                options["lr"],
                options["weight_decay"],
            )
            mine = groups.setdefault(number, {}).setdefault(
                key, {"params": [], "param_names": [], **options}
            )
            mine["params"].append(parameter)
            mine["param_names"].append(named)
        # The rate that is logged is that of the first group.
        ordered = {
            str(number): [groups[number][key] for key in sorted(groups[number], key=lambda k: k[0])]
            for number in sorted(groups)
        }
        return ordered, {
            number: [f"{len(group['params'])} parameters" for group in each]
            for number, each in ordered.items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = settings(self)
        dtypes = self._other_dtypes()
        # torch would cast the state to the dtype of parameters, so it is restored afterwards.
        kept = {name: state_dict[name] for name in dtypes if name in state_dict}
        rest = {name: value for name, value in state_dict.items() if name not in kept}
        super().load_state_dict(rest | own)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for name, parameter in zip(group["param_names"], group["params"], strict=True):
                    state = optimizer.state[parameter]
                    for full in kept:
                        if full.startswith(f"state.{name}."):
                            key = full.removeprefix(f"state.{name}.")
                            state[key] = kept[full].to(dtypes[full])
                    _place_step(parameter, state, fused=group.get("fused"))

    def _other_dtypes(self) -> dict[str, torch.dtype]:
        """Return the dtypes of state tensors whose dtype differs from their parameter's."""
        found = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for name, parameter in zip(group["param_names"], group["params"], strict=True):
                    for key, value in optimizer.state[parameter].items():
                        if key == _STEP or not isinstance(value, torch.Tensor):
                            continue
                        if value.dtype != parameter.dtype:
                            found[f"state.{name}.{key}"] = value.dtype
        return found


def part_of(parts: Sequence[OptimizerPart], name: str, shape: Iterable[int]) -> int | None:
    """Return the number of the part that updates a parameter; None if no part does."""
    size = tuple(shape)
    return next((n for n, part in enumerate(parts) if part.updates(name, size)), None)


def roles(model: torch.nn.Module) -> dict[str, str]:
    """Return the role of each parameter that is a norm's weight, a bias or an embedding."""
    found: dict[str, str] = {}
    for above, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{above}.{name}" if above else name
            if name == "bias" or name.endswith("_bias"):
                found[full] = "biases"
            elif "Norm" in type(module).__name__:
                found[full] = "norms"
            elif isinstance(module, torch.nn.Embedding):
                found[full] = "embeddings"
    return found


def _place_step(parameter: torch.Tensor, state: dict[str, Any], *, fused: bool | None) -> None:
    """Move the step count to the device if the step is fused, and to the CPU if not."""
    if _STEP in state:
        step = state[_STEP]
        step = step.to_local() if isinstance(step, DTensor) else step
        state[_STEP] = step.to(parameter.device if fused else "cpu")
