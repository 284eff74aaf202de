"""Compare a kernel with the reference of its operation, forward and backward.

The error of a tensor is its largest difference from the reference's, divided by the reference's
largest value, so that one tolerance fits large and small outputs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from atom.plugin import Kernel
from atom.registry.host import Component, Host
from atom.titan.contracts.cases import GRADIENTS, MAY_REFUSE, MAY_REFUSE_GRADIENT, STRIDES, Case
from atom.titan.contracts.contract import Contract, Tensors, as_weight, tree
from atom.titan.contracts.sizes import Sizes

if TYPE_CHECKING:
    import torch


REFERENCE = "reference"


class Implementation:
    """One kernel of an operation, in a model tree of any sizes.

    ``kernel=None`` stands for torchtitan's node.
    """

    def __init__(self, contract: Contract, kernel: Component | None) -> None:
        self.contract = contract
        self.declarations = [] if kernel is None else [kernel.declaration]

    def node(self, sizes: Sizes) -> Any:
        """Return the operation's node, replaced by the kernel's if it has an override."""
        from atom.titan.kernels import UnfitError, replace

        config = tree(self.contract.family, sizes)
        with suppress(UnfitError):
            replace(config, self.declarations)
        return self.contract.node(config)

    def module(self, node: Any, device: str, dtype: torch.dtype) -> Any:
        """Build ``node``; its weights have ``dtype`` and no values yet."""
        import torch

        with torch.device(device):
            module = self.contract.build(node)
        # Not module.to(dtype): as in mixed precision, buffers keep their dtype.
        for parameter in _parameters(module):
            parameter.data = parameter.data.to(dtype)
        return module


@dataclass(frozen=True)
class Result:
    """An output and the gradients of inputs and weights, by name."""

    output: torch.Tensor
    gradients: Tensors


def worst(
    kernel: Implementation, reference: Implementation | None, case: Case, device: str
) -> tuple[str, float]:
    """Return the name and the error of the tensor with the largest error.

    Args:
        kernel: the kernel under test.
        reference: the kernel to compare it with; None for the operation's formula.
        case: sizes, dtype and strides.
        device: ``cpu`` or ``cuda``.
    """
    import torch

    contract, sizes = kernel.contract, case.sizes
    dtype = getattr(torch, case.dtype)
    exact = torch.float64 if reference is None or contract.float64 else torch.float32
    node = kernel.node(sizes)
    module = kernel.module(node, device, dtype)
    measure = Implementation(contract, None) if reference is None else reference
    measure_node = measure.node(sizes)
    measure_module = measure.module(measure_node, device, exact)
    # Give both the same numbers: those that the dtype under test represents exactly.
    weights = {
        name: as_weight(numbers(*tensor.shape, name=name, device=device)).to(dtype).to(exact)
        for name, tensor in _state(measure_module).items()
    }
    inputs = {
        name: tensor.to(dtype).to(exact)
        for name, tensor in contract.inputs(sizes, maker(device)).items()
    }
    _fill(module, {name: tensor.to(dtype) for name, tensor in weights.items()})
    change = STRIDES.get(case.strides, torch.Tensor.contiguous)
    change_gradient = GRADIENTS.get(case.gradient or case.strides, torch.Tensor.contiguous)
    # An expanded gradient has different values, so the reference gets it, too.
    for_both = change_gradient if case.gradient == "expanded" else torch.Tensor.contiguous
    if reference is None:
        expected = _of_formula(contract, weights, inputs, sizes, for_both)
    else:
        _fill(measure_module, weights)
        expected = _of_module(reference, measure_module, measure_node, inputs, sizes, for_both)

    given = {name: change(tensor.to(dtype)) for name, tensor in inputs.items()}
    found = _of_module(kernel, module, node, given, sizes, change_gradient)

    errors = {"the output": relative_error(found.output, expected.output)}
    for name, gradient in expected.gradients.items():
        errors[f"the gradient of {name}"] = relative_error(found.gradients.get(name), gradient)
    name = max(errors, key=lambda name: errors[name])
    return name, errors[name]


def disagreements(
    kernel: Implementation,
    reference: Implementation | None,
    cases: Iterator[Case],
    tolerance: dict[str, float],
    device: str,
) -> list[str]:
    """Return a sentence for each case in which the error of ``kernel`` exceeds ``tolerance``."""
    sentences = []
    for case in cases:
        try:
            name, error = worst(kernel, reference, case, device)
        except Exception as raised:
            if case.strides in MAY_REFUSE or case.gradient in MAY_REFUSE_GRADIENT:
                continue
            words = " ".join(f"{type(raised).__name__}: {raised}".split())
            sentences.append(f"{case}: {words[:300]}")
            continue
        allowed = tolerance[case.dtype]
        if not error <= allowed:  # a NaN must fail
            sentences.append(f"{case}: {name} is off by {error:.2g}, tolerance {allowed:.2g}")
    return sentences


def gradcheck(reference: Implementation, device: str) -> None:
    """Compare the reference's gradients with finite differences, in float64.

    Raises:
        torch.autograd.gradcheck.GradcheckError: they differ.
    """
    import torch

    sizes = Sizes(
        batch=1, length=5, n_heads=2, n_kv_heads=1, head_dim=4, hidden_dim=6, vocab_size=7
    )
    contract = reference.contract
    node = reference.node(sizes)
    module = reference.module(node, device, torch.float64)
    weights = {
        name: numbers(*tensor.shape, name=name, device=device)
        for name, tensor in _state(module).items()
    }
    _fill(module, weights)
    inputs = contract.inputs(sizes, maker(device))
    names = list(inputs)

    def compute(*values: torch.Tensor) -> torch.Tensor:
        return contract.call(module, dict(zip(names, values, strict=True)), node, sizes)

    leaves = [tensor.detach().requires_grad_() for tensor in inputs.values()]
    torch.autograd.gradcheck(compute, leaves, fast_mode=True)


# ---------------------------------------------------------------------------- computing


def _of_module(
    kernel: Implementation,
    module: Any,
    node: Any,
    inputs: Tensors,
    sizes: Sizes,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> Result:
    import torch

    if not kernel.contract.differentiable:
        return Result(kernel.contract.call(module, inputs, node, sizes).detach(), {})
    # detach keeps the strides.
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    output = kernel.contract.call(module, leaves, node, sizes)
    parameters = _parameters(module)
    weight = numbers(*output.shape, name="output", device=output.device).to(output.dtype)
    if output.dim() > 1:
        weight = change(weight)
    gradients = torch.autograd.grad(
        output, [*leaves.values(), *parameters], weight, allow_unused=True
    )
    named: Tensors = {
        name: gradient
        for name, gradient in zip(leaves, gradients[: len(leaves)], strict=True)
        if gradient is not None
    }
    # A kernel may store its weights in another shape and map them to the usual names in its state
    # dict. Write the gradients into the weights, and read them by those names.
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients[len(leaves) :], strict=True):
            parameter.copy_(gradient if gradient is not None else torch.zeros_like(parameter))
    if parameters:
        named |= {name: tensor.clone() for name, tensor in _state(module).items()}
    return Result(output.detach(), named)


def _of_formula(
    contract: Contract,
    weights: Tensors,
    inputs: Tensors,
    sizes: Sizes,
    change: Callable[[torch.Tensor], torch.Tensor],
) -> Result:
    import torch

    if not contract.differentiable:
        return Result(contract.formula(weights, inputs, sizes), {})
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in (weights | inputs).items()}
    output = contract.formula(
        {name: leaves[name] for name in weights}, {name: leaves[name] for name in inputs}, sizes
    )
    weight = numbers(*output.shape, name="output", device=output.device).to(output.dtype)
    if output.dim() > 1:
        weight = change(weight)
    gradients = torch.autograd.grad(output, list(leaves.values()), weight)
    return Result(output.detach(), dict(zip(leaves, gradients, strict=True)))


# A loss is not a torch module: it has neither parameters nor a state dict.
def _parameters(module: Any) -> list[torch.Tensor]:
    return list(module.parameters()) if hasattr(module, "parameters") else []


def _state(module: Any) -> Tensors:
    return dict(module.state_dict()) if _parameters(module) else {}


def _fill(module: Any, weights: Tensors) -> None:
    if weights:
        module.load_state_dict(weights)


def numbers(*shape: int, name: str, device: Any) -> torch.Tensor:
    """Return normally distributed float64 numbers, the same for the same name and shape."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def maker(device: str) -> Callable[..., torch.Tensor]:
    """Return a function that makes a tensor of a shape, with different numbers at each call."""
    made: list[int] = []

    def make(*shape: int) -> torch.Tensor:
        made.append(len(made))
        return numbers(*shape, name=f"input {len(made)}", device=device)

    return make


def relative_error(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    if found is None or found.numel() != expected.numel():
        return float("inf")
    if not expected.numel():
        return 0.0
    scale = expected.abs().max().clamp(min=1e-30)
    return ((found.to(expected.dtype) - expected).abs().max() / scale).item()


def reference_of(component: Component, contract: Contract, host: Host) -> Implementation | None:
    """Return the kernel named ``reference`` of an operation; None if ``component`` is that kernel.

    Return torchtitan's node if no such kernel is installed.
    """
    kernel = component.declaration
    assert isinstance(kernel, Kernel)
    if kernel.name == REFERENCE:
        return None
    offered = {found.declaration.name: found for found in host.kernels(kernel.operation)}
    return Implementation(contract, offered.get(REFERENCE))


def milliseconds(compute: Callable[[], object], device: str, *, repeats: int = 3) -> float:
    """Return the median time of ``compute``."""
    import statistics
    import time

    import torch

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    times = []
    for _ in range(repeats + 1):
        wait()
        begin = time.perf_counter()
        compute()
        wait()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times[1:])  # the first call may compile


def computes(kernel: Implementation, case: Case, device: str) -> bool:
    """Return whether ``kernel`` runs on a case at all."""
    try:
        worst(kernel, kernel, case, device)
    except Exception:
        return False
    return True


def timed(kernel: Implementation, case: Case, device: str) -> float:
    """Return the time of one forward and backward pass, in milliseconds."""
    return milliseconds(passes(kernel, case, device), device)


def passes(kernel: Implementation, case: Case, device: str) -> Callable[[], object]:
    """Return a function that runs a forward and a backward pass."""
    import torch

    dtype = getattr(torch, case.dtype)
    node = kernel.node(case.sizes)
    module = kernel.module(node, device, dtype)
    inputs = kernel.contract.inputs(case.sizes, maker(device))
    given = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    return partial(_of_module, kernel, module, node, given, case.sizes)
