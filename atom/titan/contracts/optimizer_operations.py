"""Define the contracts of operations on gradients and parameters: optimizer step, clipping, Muon.

Each changes tensors in place and has no backward pass.

Shape suffixes: D = width of the model, F = width of the feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atom.titan.contracts.contract import ADAMW, Contract, Tensors
from atom.titan.contracts.sizes import Sizes

if TYPE_CHECKING:
    import torch

STEPS = 3

# ---------------------------------------------------------------------------- AdamW


def adamw(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weight, mean and square after step number ``step``, counted from 1.

    "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2.
    """
    mean = betas[0] * mean + (1 - betas[0]) * gradient
    square = betas[1] * square + (1 - betas[1]) * gradient**2
    unbiased_mean = mean / (1 - betas[0] ** step)
    unbiased_square = square / (1 - betas[1] ** step)
    update = unbiased_mean / (unbiased_square.sqrt() + eps)
    return weight - lr * (update + weight_decay * weight), mean, square


def _weights_and_gradients(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    """Return a matrix and a vector, each with a gradient per step, larger at each step."""
    inputs = {"matrix": make(sizes.hidden_dim, sizes.dim), "vector": make(sizes.dim)}
    # Small, so that rounding in a low-precision dtype stays below the changes.
    inputs = {name: 0.1 * weight for name, weight in inputs.items()}
    for step in range(STEPS):
        inputs |= {
            f"gradient {step} of {name}": 4.0 ** (step - 1) * make(*inputs[name].shape)
            for name in ("matrix", "vector")
        }
    return inputs


def _step(_module: Any, inputs: Tensors, node: Any, _sizes: Sizes) -> torch.Tensor:
    """Return the sum of a few steps' changes to the parameters."""
    import torch

    model = torch.nn.ParameterDict(
        # A copy with the input's strides.
        {name: torch.nn.Parameter(inputs[name].clone()) for name in ("matrix", "vector")}
    )
    container = node.build(model_parts=[model])
    for step in range(STEPS):
        for name, parameter in model.items():
            # With its parameter's strides, as autograd makes it; a fused step relies on them.
            parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(inputs[f"gradient {step} of {name}"])
        container.step()
    return torch.cat([(model[name] - inputs[name]).flatten() for name in ("matrix", "vector")])


def _adamw_steps(_weights: Tensors, inputs: Tensors, _sizes: Sizes) -> torch.Tensor:
    import torch

    changes = []
    for name in ("matrix", "vector"):
        weight = inputs[name]
        mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
        for step in range(STEPS):
            gradient = inputs[f"gradient {step} of {name}"]
            weight, mean, square = adamw(weight, gradient, mean, square, step + 1, **ADAMW)
        changes.append((weight - inputs[name]).flatten())
    return torch.cat(changes)


# ---------------------------------------------------------------------------- as functions

LARGEST_NORM = 1.0
COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Muon's coefficients ("Muon is Scalable for LLM Training", arXiv:2502.16982)."""

ITERATIONS = 5


def gradient_clipping(*gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the total norm, and the gradients scaled to a norm of at most :data:`LARGEST_NORM`."""
    import torch

    norm = torch.cat([gradient.flatten() for gradient in gradients]).square().sum().sqrt()
    factor = (LARGEST_NORM / (norm + 1e-6)).clamp(max=1)
    return (norm, *(gradient * factor for gradient in gradients))


def clip(function: Callable[..., torch.Tensor], *gradients: torch.Tensor) -> list[torch.Tensor]:
    """Call a function of parameters, with ``gradients`` as theirs."""
    import torch

    parameters = [torch.nn.Parameter(torch.empty_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.detach()
    norm = function(parameters, LARGEST_NORM, foreach=True, pp_mesh=None, ep_enabled=False)
    return [norm, *(parameter.grad for parameter in parameters if parameter.grad is not None)]


def newton_schulz(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Return ``matrix``, scaled to norm 1, after ``steps`` Newton-Schulz iterations.

    An iteration is X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X.
    """
    a, b, c = coefficients
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


OPTIMIZER_STEP = Contract(
    node=lambda config: config.optimizer,
    inputs=_weights_and_gradients,
    call=_step,
    formula=_adamw_steps,
    build=lambda _node: None,
    differentiable=False,
)
