"""Decide whether a kernel runs here and supports the inputs of a test; if not, say why."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from atom.errors import UserError
from atom.kernels.choose import Situation, choose, misfit_of_numbers, missing
from atom.plan.device import DeviceDescription
from atom.plugin import Kernel
from atom.registry.host import Component, Host
from atom.titan.contracts.cases import Case
from atom.titan.contracts.sizes import EIGHT_BILLION, Sizes

BENCHMARK = {
    "cpu": Sizes(batch=1, length=128, n_kv_heads=4, head_dim=32, hidden_dim=256),
    "cuda": replace(EIGHT_BILLION, batch=1),
}


def takes(kernel: Kernel, case: Case) -> bool:
    """Return whether the sizes fulfil the kernel's needs; otherwise a run would not choose it."""
    where = Situation(DeviceDescription("cpu"), sizes=case.sizes.needed)
    return misfit_of_numbers(kernel, where) is None


def divisible(kernel: Kernel, sizes: Sizes) -> Sizes:
    """Return sizes that the kernel's multiples divide: ``sizes``, if they do."""
    units = kernel.needs.multiples
    if not any(v % unit for size, unit in units.items() for v in sizes.needed.get(size, ())):
        return sizes
    unit = max(units.values())
    return replace(sizes, head_dim=unit, hidden_dim=unit, vocab_size=unit)


def lacking(kernel: Kernel) -> str | None:
    """Return the package that the kernel needs and that is not installed, or None."""
    reason = missing(kernel.needs, {})
    return f"{kernel.operation}/{kernel.name} {reason}" if reason else None


def refusal(component: Component, kind: str) -> str | None:
    from atom.titan.compat import device

    return misfit(component, device.describe(kind), context_parallel=False)


def misfit(component: Component, described: Any, *, context_parallel: bool) -> str | None:
    """Return why ATOM would refuse the kernel on a device, or None if it would not."""
    declaration = component.declaration
    assert isinstance(declaration, Kernel)
    alone = Host((component.plugin,), (component,))
    preference: dict[str, str | list[str]] = {declaration.operation: declaration.name}
    try:
        choose(preference, alone, Situation(described, context_parallel=1 + context_parallel))
    except UserError as error:
        # Format: "no kernel for X fits: NAME REASON", with "; valid: …" if there are others.
        reason = error.problem.partition(": ")[2].partition("; valid: ")[0]
        return f"{declaration.operation}/{reason}"
    return None


def arguments(node: Any) -> list[str]:
    """Return the names of the tensor arguments of a node's module; empty if it is not a module."""
    forward = getattr(type(node)._owner, "forward", None)
    parameters = inspect.signature(forward).parameters.values() if forward else ()
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.name != "self"
    ]


def of_triton(
    component: Component, look: Callable[[Component], Sequence[str] | None]
) -> Sequence[str]:
    """Return the result of ``look`` for a Triton kernel; skip the test for any other kernel."""
    if reason := lacking(component.declaration):  # type: ignore[arg-type]
        pytest.skip(reason)
    found = look(component)
    if found is None:
        pytest.skip(f"{component.name} has no Triton kernel")
    return found
