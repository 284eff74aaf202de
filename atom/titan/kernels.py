"""Which kernel computes which operation, and why the others do not.

The choice is made once, before ranks start, from a description of the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from atom.errors import UserError, nearest
from atom.host import Component, Host
from atom.plugin import Declaration, Kernel
from atom.titan.device import DeviceDescription

AUTO = "auto"
DEFAULT = "default"


@dataclass(frozen=True)
class Choice:
    """The kernel of one operation, and the reason why each one preferred to it does not fit."""

    operation: str
    kernel: Component
    rejected: tuple[tuple[str, str], ...]


def choose(
    preferences: dict[str, str | list[str]],
    host: Host,
    device: DeviceDescription,
    *,
    context_parallel: bool,
) -> tuple[Choice, ...]:
    """Return the choice for every operation that some plugin has a kernel for.

    Args:
        preferences: operation -> kernel name, or names in order of preference, or ``auto``;
            ``default`` is for the operations not named.
        host: the plugins.
        device: where the run will be.
        context_parallel: whether the sequence is split over ranks.

    Raises:
        UserError: an operation or kernel is unknown, or none of those named fits.
    """
    declared = [c.declaration for c in host.components if isinstance(c.declaration, Kernel)]
    offered: dict[str, set[str]] = {DEFAULT: {kernel.name for kernel in declared}}
    for kernel in declared:
        offered.setdefault(kernel.operation, set()).add(kernel.name)
    for operation, preference in preferences.items():
        if operation not in offered:
            raise UserError(
                f"there is no kernel for such an operation; {nearest(operation, offered)}",
                key=f"kernels.{operation}",
                value=preference,
            )
        for name in _listed(preference):
            if name not in offered[operation] and name != AUTO:
                raise UserError(
                    f"there is no such kernel; {nearest(name, [*offered[operation], AUTO])}",
                    key=f"kernels.{operation}",
                    value=name,
                )
    return tuple(
        _choose(operation, preferences, host, device, context_parallel)
        for operation in sorted(offered)
        if operation != DEFAULT
    )


def overrides(declarations: Iterable[Declaration]) -> list[Any]:
    """Return what torchtitan's ``OverrideConfig`` imports for kernels that replace a node."""
    return [
        declaration.override.replace(":", ".")
        for declaration in declarations
        if isinstance(declaration, Kernel) and declaration.override is not None
    ]


def _choose(
    operation: str,
    preferences: dict[str, str | list[str]],
    host: Host,
    device: DeviceDescription,
    context_parallel: bool,
) -> Choice:
    key = operation if operation in preferences else DEFAULT
    preference = preferences.get(key, AUTO)
    kernels = {component.declaration.name: component for component in host.kernels(operation)}
    order: list[str] = []
    for name in _listed(preference):
        order += list(kernels) if name == AUTO else [name]
    rejected: list[tuple[str, str]] = []
    for name in dict.fromkeys(order):
        if name not in kernels:
            rejected.append((name, "has none"))
            continue
        declaration = kernels[name].declaration
        assert isinstance(declaration, Kernel)
        reason = _misfit(declaration, device, context_parallel)
        if reason is None:
            return Choice(operation, kernels[name], tuple(rejected))
        rejected.append((name, reason))
    reasons = "; ".join(f"{name} {reason}" for name, reason in rejected)
    raise UserError(
        f"no kernel for {operation} fits: {reasons}; valid: {AUTO}, or one of "
        + ", ".join(kernels),
        key=f"kernels.{key}",
        value=preference,
    )


def _listed(preference: str | list[str]) -> list[str]:
    return [preference] if isinstance(preference, str) else preference


def _misfit(kernel: Kernel, device: DeviceDescription, context_parallel: bool) -> str | None:
    """Return why ``kernel`` cannot be used, or None."""
    needs = kernel.needs
    if device.kind not in needs.devices:
        return f"needs {' or '.join(needs.devices)}, and this is {device.kind}"
    if needs.capability and device.capability and device.capability < needs.capability:
        wanted, found = (".".join(map(str, c)) for c in (needs.capability, device.capability))
        return f"needs compute capability {wanted}, and this device has {found}"
    if context_parallel and not needs.context_parallel:
        return "does not work under context parallelism"
    for package in needs.packages:
        requirement = Requirement(package)
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            return f"needs the package {package}"
        if not requirement.specifier.contains(version, prereleases=True):
            return f"needs {package}, and {version} is installed"
    return None
