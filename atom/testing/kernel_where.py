"""Decide which tests of the kernel suite apply to a kernel.

Tests that lack a device or a package are left out too, except ``test_needs_are_honest``, which is
skipped with the reason.
"""

from __future__ import annotations

from typing import Any

from atom.registry.host import Component
from atom.testing import interpreter, kernel_fit
from atom.titan.contracts.contract import Contract
from atom.titan.contracts.operations import contract_of

Suite = Any  # of the kernel under test


def contract(suite: Suite, component: Component) -> Contract | None:
    """Return the contract of the kernel's operation, or None if the kit has none."""
    found: Contract | None = suite.operation or contract_of(_operation(component))
    return found


def has_contract(suite: Suite, component: Component) -> bool:
    return contract(suite, component) is not None


def has_gradients(suite: Suite, component: Component) -> bool:
    """Return whether the operation's gradients can be checked by finite differences."""
    found = contract(suite, component)
    return found is not None and found.differentiable and found.float64


def has_override(_suite: Suite, component: Component, **_parameters: Any) -> bool:
    """Return whether the kernel replaces torchtitan's node, which every run tests."""
    declaration: Any = component.declaration
    return declaration.override is not None


def runs_here(_suite: Suite, component: Component) -> bool:
    """Return whether the kernel's needs are met on this process's device."""
    from atom.titan.boot import settled

    return kernel_fit.refusal(component, settled()) is None


def compares_here(suite: Suite, component: Component) -> bool:
    """Return whether the kernel can be compared with its reference in this process."""
    return has_contract(suite, component) and runs_here(suite, component)


def runs_on_ranks(_suite: Suite, component: Component, layout: str) -> bool:
    """Return whether the kernel's needs are met on the ranks of a test, which use the CPU."""
    from atom.titan.compat import device

    described = device.describe("cpu")
    return kernel_fit.misfit(component, described, context_parallel=layout == "cp") is None


def is_triton(_suite: Suite, component: Component, **_parameters: Any) -> bool:
    """Return whether it is a Triton kernel and the packages that it needs are installed."""
    from atom.titan.boot import settled

    settled()  # the kernel's modules import torchtitan
    declaration: Any = component.declaration
    return kernel_fit.lacking(declaration) is None and interpreter.is_triton(component)


def _operation(component: Component) -> str:
    declaration: Any = component.declaration
    return str(declaration.operation)
