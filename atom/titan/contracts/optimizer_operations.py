"""The operations of a step after its gradients.

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
    """Return weight, mean and square after step number ``step``, the first of which is 1.

    "Decoupled Weight Decay Regularization", arXiv:1711.05101, algorithm 2.
    """
    mean = betas[0] * mean + (1 - betas[0]) * gradient
    square = betas[1] * square + (1 - betas[1]) * gradient**2
    unbiased_mean = mean / (1 - betas[0] ** step)
    unbiased_square = square / (1 - betas[1] ** step)
    update = unbiased_mean / (unbiased_square.sqrt() + eps)
    return weight - lr * (update + weight_decay * weight), mean, square


def _weights_and_gradients(sizes: Sizes, make: Callable[..., torch.Tensor]) -> Tensors:
    """A matrix and a vector, with a gradient for each step, larger than the one before."""
    inputs = {"matrix": make(sizes.hidden_dim, sizes.dim), "vector": make(sizes.dim)}
    # Small, so that what is rounded off in a dtype of few bits is less than the changes.
    inputs = {name: 0.1 * weight for name, weight in inputs.items()}
    for step in range(STEPS):
        inputs |= {
            f"gradient {step} of {name}": 4.0 ** (step - 1) * make(*inputs[name].shape)
            for name in ("matrix", "vector")
        }
    return inputs


def _step(_module: Any, inputs: Tensors, node: Any, _sizes: Sizes) -> torch.Tensor:
    """Return what a few steps add to the parameters."""
    import torch

    model = torch.nn.ParameterDict(
        # A copy, with the strides of the input.
        {name: torch.nn.Parameter(inputs[name].clone()) for name in ("matrix", "vector")}
    )
    container = node.build(model_parts=[model])
    for step in range(STEPS):
        for name, parameter in model.items():
            # With the strides of its parameter, as autograd has it; a fused step relies on them.
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
"""Of Muon ("Muon is Scalable for LLM Training", arXiv:2502.16982)."""

ITERATIONS = 5


def gradient_clipping(*gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the norm of all, and each times what makes the norm :data:`LARGEST_NORM` at most."""
    import torch

    norm = torch.cat([gradient.flatten() for gradient in gradients]).square().sum().sqrt()
    factor = (LARGEST_NORM / (norm + 1e-6)).clamp(max=1)
    return (norm, *(gradient * factor for gradient in gradients))


def clip(function: Callable[..., torch.Tensor], *gradients: torch.Tensor) -> list[torch.Tensor]:
    """Call a function of parameters with such gradients."""
    import torch

    parameters = [torch.nn.Parameter(torch.empty_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.detach()
    norm = function(parameters, LARGEST_NORM, foreach=True, pp_mesh=None, ep_enabled=False)
    return [norm, *(parameter.grad for parameter in parameters if parameter.grad is not None)]


def newton_schulz(
    matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Return ``matrix`` after ``steps`` iterations X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X, from a
    matrix whose norm is 1."""
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
