"""Compare a kernel's functions with their formulas, forward and backward.

Needs no torchtitan, so it also runs on a machine without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from atom.titan.contracts.comparison import maker, numbers, relative_error
from atom.titan.contracts.contract import Tensors
from atom.titan.contracts.functions import Function
from atom.titan.contracts.sizes import Sizes

if TYPE_CHECKING:
    import torch


def prepared(
    contract: Function,
    sizes: Sizes,
    dtype: torch.dtype,
    device: Any,
    make: Callable[..., torch.Tensor] | None = None,
) -> tuple[Tensors, tuple[Any, ...]]:
    """Return a function's inputs and its other arguments; inputs require gradients if it has any.

    ``make`` makes a tensor of a shape; the default makes the same numbers on every device.
    """
    made = contract.inputs(sizes, make or maker(device))
    wanted = contract.backward is not None
    inputs = {name: tensor.to(dtype).requires_grad_(wanted) for name, tensor in made.items()}
    return inputs, contract.others(sizes, device)


def outputs(result: Any) -> list[torch.Tensor]:
    """Return what a function returns, as a list."""
    return list(result) if isinstance(result, tuple | list) else [result]


def both(
    function: Callable[..., Any], contract: Function, sizes: Sizes, dtype: str, device: str
) -> None:
    """Run a function forward and backward."""
    import torch

    inputs, others = prepared(contract, sizes, getattr(torch, dtype), device)
    found = outputs(contract.call(function, *inputs.values(), *others))
    if contract.backward is not None:
        weights = [torch.ones_like(one) for one in found]
        torch.autograd.grad(found, list(inputs.values()), weights)


def worst(
    function: Callable[..., Any],
    contract: Function,
    sizes: Sizes,
    dtype: str,
    device: str,
    make: Callable[..., torch.Tensor] | None = None,
) -> tuple[str, float]:
    """Return the name and the error of the tensor with the largest error.

    The formula computes in float64, from the numbers that ``dtype`` can hold; ``make`` as of
    :func:`prepared`.
    """
    import torch

    inputs, others = prepared(contract, sizes, getattr(torch, dtype), device, make)
    exact = {
        name: tensor.detach().double().requires_grad_(tensor.requires_grad)
        for name, tensor in inputs.items()
    }
    expected = outputs(contract.formula(*exact.values(), *others))
    found = outputs(contract.call(function, *inputs.values(), *others))
    errors = {
        f"output {n}": relative_error(one.detach(), expected[n].detach())
        for n, one in enumerate(found)
    }
    if contract.backward is not None:
        weights = [
            numbers(*one.shape, name=f"output {n}", device=device) for n, one in enumerate(expected)
        ]
        wanted = torch.autograd.grad(expected, list(exact.values()), weights)
        rounded = [
            weight.reshape(one.shape).to(one.dtype)
            for weight, one in zip(weights, found, strict=True)
        ]
        gradients = torch.autograd.grad(found, list(inputs.values()), rounded)
        for name, gradient, other in zip(inputs, gradients, wanted, strict=True):
            errors[f"the gradient of {name}"] = relative_error(gradient, other)
    name = max(errors, key=lambda name: errors[name])
    return name, errors[name]


def disagreements(
    function: Callable[..., Any],
    contract: Function,
    cases: Iterable[tuple[Sizes, str]],
    tolerance: Mapping[str, float],
    device: str,
) -> list[str]:
    """Return a sentence for each case, sizes and dtype, with an error above ``tolerance``."""
    sentences = []
    for sizes, dtype in cases:
        name, error = worst(function, contract, sizes, dtype, device)
        if not error <= tolerance[dtype]:  # a NaN must fail
            sentences.append(
                f"{contract.signature}, {sizes}, {dtype}: {name} is off by {error:.2g}, "
                f"tolerance {tolerance[dtype]:.2g}"
            )
    return sentences
