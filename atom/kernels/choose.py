"""Choose a kernel for each operation and record why the others were rejected.

The choice is made once, before ranks start, from a description of the device and the run. Nothing
here imports torch, so a laptop can choose for another machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from atom.errors import UserError, nearest
from atom.kernels.operations import OPERATIONS, overlap
from atom.plan.device import DeviceDescription
from atom.plugin import Kernel, Needs
from atom.registry.host import Component, Host

AUTO = "auto"
FITS = "fits"
"""Prefix of the reason for a kernel that fits but was not chosen."""

DEFAULT = "default"

Preferences = Mapping[str, str | list[str]]
"""Operation -> a kernel name, an ordered list of names, or ``auto``.

``default`` applies to operations that are not named.
"""


@dataclass(frozen=True)
class Situation:
    """The device, dtype and sizes that kernels are chosen for. An unknown value rejects no kernel.

    Attributes:
        device: the device of the run.
        dtype: the compute dtype, by torch's name.
        parameter_dtype: the dtype of parameters and their gradients.
        sizes: the model's values of each size: ``head_dim``, ``dim``, ``hidden_dim``,
            ``vocab_size``; and ``grouped_mm.hidden_dim``, those of one operation.
        tensor_parallel: degree of tensor parallelism.
        context_parallel: degree of context parallelism.
        expert_parallel: degree of expert parallelism.
        deterministic: whether torch must refuse operations that are not bitwise reproducible.
        operations: the model's operations.
        supposed: packages to treat as installed, with a version or None for any.
        unfit: (operation, kernel) -> why the kernel does not compute the model's operation.
    """

    device: DeviceDescription
    dtype: str | None = None
    parameter_dtype: str | None = None
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tensor_parallel: int = 1
    context_parallel: int = 1
    expert_parallel: int = 1
    deterministic: bool = False
    operations: frozenset[str] | None = None
    supposed: Mapping[str, str | None] = field(default_factory=dict)
    unfit: Mapping[tuple[str, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The kernel chosen for one operation, and why the others were not.

    ``rejected`` maps preferred kernels that do not fit to the reason; ``passed_over`` those that
    were not tried, because a kernel before them fits.
    """

    operation: str
    kernel: Component
    rejected: tuple[tuple[str, str], ...]
    passed_over: tuple[tuple[str, str], ...] = ()

    @property
    def declaration(self) -> Kernel:
        assert isinstance(self.kernel.declaration, Kernel)
        return self.kernel.declaration

    @property
    def name(self) -> str:
        return self.declaration.name


def choose(preferences: Preferences, host: Host, situation: Situation) -> tuple[Choice, ...]:
    """Return the choice for every operation of the model that has an installed kernel.

    An operation that only the model's own modules compute has no kernel.

    If one operation is part of another, only one kernel may replace a node. The operation named in
    ``preferences`` goes first, then the one that contains the other.

    Raises:
        UserError: an operation or kernel is unknown, or none of those named fits.
    """
    offered = _checked(preferences, host)
    present = situation.operations
    wanted = [name for name in offered if present is None or name in present]
    for operation, preference in preferences.items():
        if operation not in (DEFAULT, *wanted) and AUTO not in _listed(preference):
            raise UserError(
                f"this run has no such operation; it has {', '.join(wanted)}",
                valid=f"{AUTO}",
                key=f"kernels.{operation}",
                value=preference,
            )
    choices: dict[str, Choice] = {}
    for operation in sorted(
        wanted, key=lambda name: (name not in preferences, _is_a_part(name, wanted), name)
    ):
        replaced = [o for o, c in choices.items() if c.declaration.override is not None]
        choice = _choose(operation, preferences, host, situation, replaced)
        if choice is not None:
            choices[operation] = choice
    return tuple(choices[operation] for operation in sorted(choices))


def misfit(kernel: Kernel, situation: Situation) -> str | None:
    """Return why ``kernel`` cannot be used, or None."""
    needs = kernel.needs
    return (
        _of_device(needs, situation.device)
        or _of_layout(needs, situation)
        or misfit_of_numbers(kernel, situation)
        or missing(needs, situation.supposed)
    )


def misfit_of_numbers(kernel: Kernel, situation: Situation) -> str | None:
    """Return why ``kernel`` does not support the dtype or the sizes, or None."""
    needs = kernel.needs
    known = OPERATIONS.get(kernel.operation)
    dtype, what = situation.dtype, "the run computes in"
    if known is not None and known.of_parameters:
        dtype, what = situation.parameter_dtype, "the parameters are in"
    if known is not None and known.dtype is not None:
        dtype, what = known.dtype, "the operation is in"
    if dtype is not None and dtype not in kernel.tolerance:
        return f"supports {' or '.join(kernel.tolerance)}, and {what} {dtype}"
    for size, unit in needs.multiples.items():
        for value in _sizes(kernel, situation, size):
            if value % unit:
                return f"needs {size} to be a multiple of {unit}, and it is {value}"
    for size, most in needs.largest.items():
        for value in _sizes(kernel, situation, size):
            if value > most:
                return f"needs {size} to be at most {most}, and it is {value}"
    for size, least in needs.smallest.items():
        for value in _sizes(kernel, situation, size):
            if value < least:
                return f"needs {size} to be at least {least}, and it is {value}"
    return None


def _sizes(kernel: Kernel, situation: Situation, size: str) -> tuple[int, ...]:
    """Return the values of a size for the kernel's operation."""
    everywhere = situation.sizes.get(size, ())
    return situation.sizes.get(f"{kernel.operation}.{size}", everywhere)


def missing(needs: Needs, supposed: Mapping[str, str | None]) -> str | None:
    """Return the required package that is missing, or None.

    ``supposed`` packages count as installed.
    """
    for package in needs.packages:
        try:
            requirement = Requirement(package)
        except InvalidRequirement:
            # An error in one plugin must not end runs that do not use it.
            return f"needs {package!r}, which is not a valid requirement"
        if requirement.name in supposed and supposed[requirement.name] is None:
            continue
        version = supposed.get(requirement.name) or _installed(requirement.name)
        if version is None:
            return f"needs the package {package}"
        if not requirement.specifier.contains(version, prereleases=True):
            return f"needs {package}, and {version} is installed"
    return None


def described(needs: Needs, dtypes: Iterable[str]) -> str:
    """Return ``needs`` in one line, for people."""
    words = []
    if needs.triton:
        words.append("cuda, or Triton's interpreter")
    elif needs.devices != Needs().devices:
        words.append(" or ".join(needs.devices))
    if needs.capability:
        words.append(f"compute capability {_dotted(needs.capability)} or newer")
    if needs.capability_below:
        words.append(f"older than {_dotted(needs.capability_below)}")
    words += [f"{size} at least {least}" for size, least in needs.smallest.items()]
    words += [f"{size} at most {most}" for size, most in needs.largest.items()]
    words += [f"{size} a multiple of {unit}" for size, unit in needs.multiples.items()]
    words += needs.packages
    if not needs.tensor_parallel:
        words.append("no tensor parallelism")
    if not needs.context_parallel:
        words.append("no context parallelism")
    if needs.tensor_parallel_only:
        words.append("tensor parallelism")
    if needs.expert_parallel:
        words.append("expert parallelism")
    if not needs.deterministic:
        words.append("no debug.deterministic")
    return ", ".join([*words, f"supports {', '.join(dtypes)}"])


# ---------------------------------------------------------------------------- choosing


def _checked(preferences: Preferences, host: Host) -> dict[str, set[str]]:
    """Return each operation with the names of its kernels; refuse unknown preferences."""
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
    del offered[DEFAULT]
    return offered


def _is_a_part(operation: str, others: Iterable[str]) -> bool:
    return any(overlap(operation, other) == other for other in others)


def _choose(
    operation: str,
    preferences: Preferences,
    host: Host,
    situation: Situation,
    replaced: list[str],
) -> Choice | None:
    key = operation if operation in preferences else DEFAULT
    preference = preferences.get(key, AUTO)
    kernels = {component.declaration.name: component for component in host.kernels(operation)}
    order: dict[str, bool] = {}  # name -> whether the user named it
    for name in _listed(preference):
        for each in list(kernels) if name == AUTO else [name]:
            order.setdefault(each, name != AUTO)
    tried: list[tuple[str, str]] = []
    for name, is_named in order.items():
        reason = (
            _reason(kernels[name], situation, replaced, is_named=is_named)
            if name in kernels
            else "has none"
        )
        if reason is None:
            rest = [other for other in kernels if other not in dict(tried) and other != name]
            passed_over = [
                (
                    other,
                    _reason(kernels[other], situation, replaced, is_named=other in order)
                    or f"{FITS}; {name} comes first",
                )
                for other in rest
            ]
            return Choice(operation, kernels[name], tuple(tried), tuple(passed_over))
        tried.append((name, reason))
    if operation not in preferences and any((operation, n) in situation.unfit for n in kernels):
        return None  # the model's own modules compute it, and the user named no kernel
    reasons = "; ".join(f"{name} {reason}" for name, reason in tried)
    unasked, named = (
        [n for n, k in kernels.items() if _reason(k, situation, replaced, is_named=asked) is None]
        for asked in (False, True)
    )
    valid = ", ".join([AUTO] * bool(unasked) + named)
    raise UserError(
        f"no kernel for {operation} fits: {reasons}" + (f"; valid: {valid}" if valid else ""),
        key=f"kernels.{key}",
        value=preference,
    )


def _listed(preference: str | list[str]) -> list[str]:
    return [preference] if isinstance(preference, str) else preference


def _reason(
    component: Component, situation: Situation, replaced: list[str], *, is_named: bool
) -> str | None:
    kernel = component.declaration
    assert isinstance(kernel, Kernel)
    if reason := misfit(kernel, situation) or situation.unfit.get((kernel.operation, kernel.name)):
        return reason
    if kernel.needs.triton and situation.device.kind == "cpu" and not is_named:
        return "runs in Triton's interpreter on this machine, which is for tests: choose it by name"
    for other in replaced if kernel.override is not None else ():
        if overlap(kernel.operation, other):
            return f"cannot be combined with the kernel of {other}: one node is a part of the other"
    return None


# ---------------------------------------------------------------------------- fitting


def _of_device(needs: Needs, device: DeviceDescription) -> str | None:
    if device.kind not in needs.devices:
        return f"needs {' or '.join(needs.devices)}, and this is {device.kind}"
    if needs.triton and device.kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "needs cuda, or Triton's interpreter on a CPU (TRITON_INTERPRET=1)"
    found = device.capability
    if found and needs.capability and found < needs.capability:
        wanted = _dotted(needs.capability)
        return f"needs compute capability {wanted}, and this device has {_dotted(found)}"
    if found and needs.capability_below and found >= needs.capability_below:
        limit = _dotted(needs.capability_below)
        return f"supports compute capabilities below {limit}, and this device has {_dotted(found)}"
    return None


def _of_layout(needs: Needs, situation: Situation) -> str | None:
    if situation.context_parallel > 1 and not needs.context_parallel:
        return "does not work under context parallelism"
    if situation.tensor_parallel > 1 and not needs.tensor_parallel:
        return "does not work under tensor parallelism"
    if situation.expert_parallel == 1 and needs.expert_parallel:
        return "needs expert parallelism"
    if situation.tensor_parallel == 1 and needs.tensor_parallel_only:
        return "needs tensor parallelism"
    if situation.deterministic and not needs.deterministic:
        return "does not work with debug.deterministic=true"
    return None


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
