"""Select the kernels to time, from the installed declarations, and their sizes. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from atom.errors import UserError, nearest
from atom.kernels.choose import Situation, misfit
from atom.kernels.operations import OPERATIONS
from atom.plan.device import DeviceDescription
from atom.plugin import Kernel
from atom.registry.host import Component, Host
from atom.titan.contracts import operations
from atom.titan.contracts.functions import FUNCTIONS, functions_of
from atom.titan.contracts.sizes import EIGHT_BILLION, Sizes

REFERENCE = "reference"

SHAPES: dict[str, tuple[Sizes, ...]] = {
    "tiny": (Sizes(),),
    "small": (
        Sizes(length=128, n_heads=8, head_dim=32, hidden_dim=1024, vocab_size=4096),
        Sizes(length=512, n_heads=8, head_dim=64, hidden_dim=2048, vocab_size=8192),
    ),
    "real": (
        EIGHT_BILLION,
        replace(EIGHT_BILLION, batch=4),
        replace(EIGHT_BILLION, batch=8),
        *(replace(EIGHT_BILLION, batch=batch, n_heads=64, hidden_dim=28672) for batch in (2, 4, 8)),
    ),
}
"""``tiny``: for a trial; ``small``: for a CPU; ``real``: models of 8 and 70 billion parameters."""


@dataclass(frozen=True)
class Subject:
    """A kernel to time: as one of its functions, or as the module that its override builds.

    Attributes:
        component: the kernel.
        function: its contract's name in :data:`FUNCTIONS`.
        reference: ``module:attribute`` of the function; None for the module.
    """

    component: Component
    function: str
    reference: str | None

    @property
    def kernel(self) -> Kernel:
        assert isinstance(self.component.declaration, Kernel)
        return self.component.declaration


def chosen(host: Host, wanted: Sequence[str], kernels: Sequence[str]) -> list[Subject]:
    """Return the subjects to time, the reference of each function first.

    Args:
        host: the plugins.
        wanted: names of operations or functions; empty for all.
        kernels: names of kernels; empty for all. References are always timed.

    Raises:
        UserError: an operation or a kernel is unknown.
    """
    subjects = list(_all(host))
    offered = {s.function for s in subjects} | {s.kernel.operation for s in subjects}
    for name in wanted:
        if name not in offered:
            raise UserError(f"--operation {name}: no kernel has it; {nearest(name, offered)}")
    subjects = [s for s in subjects if not wanted or {s.function, s.kernel.operation} & set(wanted)]
    names = {s.kernel.name for s in subjects}
    for name in kernels:
        if name not in names:
            of = f" of {', '.join(wanted)}" if wanted else ""
            raise UserError(f"--kernel {name}: there is no such kernel{of}; {nearest(name, names)}")
    timed = {s.function for s in subjects if not kernels or s.kernel.name in kernels}
    return sorted(
        (
            s
            for s in subjects
            if s.function in timed and (s.kernel.name in kernels or not kernels or _is_reference(s))
        ),
        key=lambda s: (s.kernel.operation, s.function, not _is_reference(s), s.kernel.name),
    )


def refusal(subject: Subject, where: Situation) -> str | None:
    """Return why ``subject`` cannot be timed, or None."""
    kernel = subject.kernel
    if kernel.needs.triton and where.device.kind == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return "not timed: interpreter"
        return "needs cuda: Triton's interpreter on a CPU is not timed"
    known = OPERATIONS.get(kernel.operation)
    if known is not None and known.dtype not in (None, where.dtype):
        return f"is in {known.dtype}, whatever the run computes in"
    if reason := misfit(kernel, where):
        return reason
    if subject.function not in FUNCTIONS:
        return f"{subject.function} has no contract, so its arguments are unknown"
    if subject.reference is None:
        contract = operations.contract_of(subject.function)
        if contract is None:
            return f"declares no function, and the kit has no contract of {kernel.operation}"
        if not contract.differentiable:
            return "declares no function, and its module takes several steps at once"
        if find_spec("torchtitan") is None:
            return "declares no function, and its module needs torchtitan, which is not installed"
    return None


def situation(described: DeviceDescription, dtype: str, sizes: Sizes) -> Situation:
    """Return the situation that a kernel's needs are checked against."""
    return Situation(described, dtype=dtype, parameter_dtype=dtype, sizes=sizes.needed)


def _is_reference(subject: Subject) -> bool:
    return subject.kernel.name == REFERENCE


def _all(host: Host) -> Iterator[Subject]:
    for component in host.components:
        kernel = component.declaration
        if not isinstance(kernel, Kernel):
            continue
        functions = functions_of(kernel)
        for name, reference in functions.items():
            yield Subject(component, name, reference)
        if not functions:
            yield Subject(component, kernel.operation, None)
