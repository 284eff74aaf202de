"""The optimizers by torch's own implementations, or by formulas of papers in plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensors = dict[str, Any]
Gradients = Sequence[Tensors]


def torchs(kind: Any, weights: Tensors, gradients: Gradients, **options: Any) -> Tensors:
    """Return the weights after the steps of an optimizer of torch."""
    parameters = {name: torch.nn.Parameter(weight) for name, weight in weights.items()}
    optimizer = kind(parameters.values(), foreach=False, **options)
    for gradient in gradients:
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].clone()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def adamw(weights: Tensors, gradients: Gradients, config: Any) -> Tensors:
    """Return the weights after torch's AdamW."""
    options = config.model_dump(include={"lr", "betas", "eps", "weight_decay"})
    return torchs(torch.optim.AdamW, weights, gradients, **options)


def adam(weights: Tensors, gradients: Gradients, config: Any) -> Tensors:
    """Return the weights after torch's Adam."""
    options = config.model_dump(include={"lr", "betas", "eps", "weight_decay"})
    return torchs(torch.optim.Adam, weights, gradients, **options)


def adafactor(weights: Tensors, gradients: Gradients, config: Any) -> Tensors:
    """Return the weights after torch's Adafactor."""
    options = config.model_dump(include={"lr", "beta2_decay", "weight_decay"})
    options |= {"eps": (config.eps1, config.eps2), "d": config.clip}
    return torchs(torch.optim.Adafactor, weights, gradients, **options)


def of_layers(
    matrices: Callable[[Tensors, Gradients, Any], Tensors], adamw_lr: Callable[[Any], float]
) -> Callable[[Tensors, Gradients, Any], Tensors]:
    """Return a reference with AdamW for all but the matrices of layers."""

    def reference(weights: Tensors, gradients: Gradients, config: Any) -> Tensors:
        mine = {n: w for n, w in weights.items() if n.startswith("layers.") and w.ndim == 2}
        rest = {name: weight for name, weight in weights.items() if name not in mine}
        others = config.model_copy(update={"lr": adamw_lr(config)})
        return matrices(mine, gradients, config) | adamw(rest, gradients, others)

    return reference


def muon(weights: Tensors, gradients: Gradients, config: Any) -> Tensors:
    """Return the weights after torch's Muon."""
    parameters = {name: torch.nn.Parameter(weight) for name, weight in weights.items()}
    options = config.model_dump(include={"lr", "momentum", "weight_decay"})
    optimizer = torch.optim.Muon(parameters.values(), adjust_lr_fn="match_rms_adamw", **options)
    for gradient in gradients:
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].clone()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def lion(weights: Tensors, gradients: Gradients, config: Any) -> Tensors:
    """Return the weights after Lion: arXiv:2302.06675, algorithm 2."""
    (beta1, beta2), lr = config.betas, config.lr
    means = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for gradient in gradients:
        for name, weight in weights.items():
            update = (beta1 * means[name] + (1 - beta1) * gradient[name]).sign()
            weights[name] = weight - lr * (update + config.weight_decay * weight)
            means[name] = beta2 * means[name] + (1 - beta2) * gradient[name]
    return weights


def dion(weights: Tensors, gradients: Gradients, config: Any) -> Tensors:
    """Return the weights after Dion: arXiv:2504.05295, algorithm 1, in float64."""
    for name, given in weights.items():
        weight, (rows, columns) = given.double(), given.shape
        rank = max(1, -int(-config.rank_fraction * min(rows, columns) // 1))
        generator = torch.Generator().manual_seed(columns)
        right = torch.randn((columns, rank), generator=generator).double()
        right /= right.norm(dim=0)
        momentum = torch.zeros_like(weight)
        for gradient in gradients:
            buffer = momentum + gradient[name].double()
            left, _ = torch.linalg.qr(buffer @ right)
            product = buffer.T @ left
            momentum = buffer - (1 - config.momentum) * left @ product.T
            right = product / product.norm(dim=0)
            scale = config.lr * (rows / columns) ** 0.5
            weight = weight * (1 - config.lr * config.weight_decay) - scale * left @ right.T
        weights[name] = weight.float()
    return weights
