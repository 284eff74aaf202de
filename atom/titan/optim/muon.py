"""Muon for sharded models: Muon updates the layers' matrices, AdamW all other parameters.

Muon ("Muon is Scalable for LLM Training", arXiv:2502.16982) orthogonalizes the momentum of a matrix
by five Newton-Schulz iterations. They need the whole matrix, so each rank owns some of the matrices
(:mod:`atom.titan.optim.whole_matrices`): the update is the same under every layout, and with more
ranks, each computes less.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from atom.titan.optim.whole_matrices import on_owners


def newton_schulz(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Return ``matrix``, of shape (rows, columns) in bfloat16, made nearly orthogonal.

    This is torch's function; kernels of the operation ``newton_schulz`` replace it.
    """
    return _zeropower_via_newtonschulz(matrix, coefficients, steps, eps)


class Muon(torch.optim.Muon):
    """torch's Muon, for parameters that may be DTensors."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, both of shape (rows, columns).

        All ranks that share the model must call this together.
        """
        assert closure is None, "torchtitan's containers support none"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            momentum, orthogonal = (partial(f, group=group) for f in (self._momentum, _orthogonal))
            for parameter in parameters:
                if not isinstance(parameter, DTensor):
                    self._change(parameter, orthogonal(momentum(parameter)), group)
            divided = [p for p in parameters if isinstance(p, DTensor)]
            for parameter, update in on_owners(divided, momentum, orthogonal, dtype=torch.bfloat16):
                self._change(parameter, update, group)

    def _momentum(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Return this rank's shard of the gradient with momentum, in the iterations' dtype."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        if group["nesterov"]:
            momentum = gradient.lerp(momentum, group["momentum"])
        return _local(momentum).bfloat16()

    def _change(self, parameter: torch.Tensor, update: torch.Tensor, group: dict[str, Any]) -> None:
        """Update this rank's shard of a parameter."""
        lr = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
        local = _local(parameter)
        local.mul_(1 - group["lr"] * group["weight_decay"])
        local.add_(update, alpha=-lr)


def _orthogonal(momentum: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    return newton_schulz(momentum, group["ns_coefficients"], group["ns_steps"], group["eps"])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_matrix_of_layer(name: str, dimensions: int) -> bool:
    """Return whether Muon, not AdamW, updates a parameter: a matrix of a layer."""
    return dimensions == 2 and name.startswith("layers.")
