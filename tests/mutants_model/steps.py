"""Kernels of a step after its gradients, each with one fault, or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim._muon import _zeropower_via_newtonschulz
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.config.override import derive, override
from torchtitan.distributed.utils import clip_grad_norm_


class _WithoutCorrection(OptimizersContainer):
    """Starts as if it had taken many steps, so that nothing is corrected for the first ones."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    def __init__(self, config: Any, *, model_parts: list[torch.nn.Module]) -> None:
        super().__init__(config, model_parts=model_parts)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter] = {
                        "step": torch.tensor(1e6),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }


@override(target=OptimizersContainer.Config)
def optimizer_step_twin(node: Any) -> Any:
    return derive(node, type(node), implementation="foreach")


@override(target=OptimizersContainer.Config)
def optimizer_step_without_correction(node: Any) -> Any:
    return derive(node, _WithoutCorrection.Config)


def gradient_clipping_twin(parameters: Any, max_norm: float, **layout: Any) -> torch.Tensor:
    return clip_grad_norm_(parameters, max_norm, **layout)


def gradient_clipping_of_matrices(parameters: Any, max_norm: float, **layout: Any) -> torch.Tensor:
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    return clip_grad_norm_(matrices, max_norm, **layout)


newton_schulz_twin = _zeropower_via_newtonschulz


def newton_schulz_stops_early(matrix: Any, coefficients: Any, steps: int, eps: float) -> Any:
    return _zeropower_via_newtonschulz(matrix, coefficients, steps - 1, eps)
