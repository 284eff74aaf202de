"""Time each kernel, forward and backward, and compare it with the ceilings and its reference.

Inputs require gradients, as in training: a kernel that computes gradients in its forward pass does
so here. ``forward`` and ``both`` (forward, then backward) are timed; ``backward`` is the difference
of their medians, so it has no quartiles. A function without a backward pass is timed as
``forward`` only.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from atom.bench.ceiling import Ceiling
from atom.bench.subjects import REFERENCE, Subject, refusal, situation
from atom.bench.timing import Timing, peak_memory, timed
from atom.plan.device import DeviceDescription
from atom.registry.host import resolve
from atom.titan.contracts import operations
from atom.titan.contracts.comparing import outputs, prepared
from atom.titan.contracts.comparison import Implementation
from atom.titan.contracts.functions import FUNCTIONS
from atom.titan.contracts.sizes import Sizes
from atom.titan.contracts.work import Work

if TYPE_CHECKING:
    import torch

COMPILED = "reference, compiled"

FORWARD, BACKWARD, BOTH = "forward", "backward", "both"


@dataclass(frozen=True)
class Pass:
    """The result of one pass.

    ``fraction`` is the shortest time that the ceilings allow, divided by ``seconds``; ``bound``
    names the limiting ceiling. ``speedup`` is over the reference, plain and compiled.
    """

    seconds: float
    low: float | None
    high: float | None
    flops: float
    bytes: float
    flops_per_second: float
    bytes_per_second: float
    bound: str
    fraction: float
    speedup: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A kernel's function at one size in one dtype: its passes, or why there are none.

    ``peak_memory`` is the largest allocation of both passes besides the inputs, in bytes;
    ``launch`` is how the work was launched on the device; ``failed`` marks a kernel that should
    have run.
    """

    operation: str
    function: str
    kernel: str
    package: str
    version: str
    dtype: str
    shape: str
    passes: dict[str, Pass] = field(default_factory=dict)
    peak_memory: int | None = None
    launch: str | None = None
    reason: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class _Callable:
    """A kernel with its inputs; gradients are taken of the result of ``forward``."""

    forward: Callable[[], list[torch.Tensor]]
    leaves: list[torch.Tensor]


@dataclass(frozen=True)
class Bench:
    """The device, ceilings and time limits of a benchmark.

    Attributes:
        device: ``cpu`` or ``cuda``, described.
        ceiling: the device's ceilings in each dtype.
        seconds: about how long each pass is repeated.
        compiles: whether the reference is also timed compiled.
        until: deadline on the clock of :func:`time.monotonic`; no kernel starts after it.
    """

    device: DeviceDescription
    ceiling: Ceiling
    seconds: float
    compiles: bool
    until: float = math.inf

    def rows(
        self, subjects: Sequence[Subject], shapes: Iterable[Sizes], dtypes: Iterable[str]
    ) -> Iterator[Row]:
        """Yield a row with its speed-up for each subject, size and dtype.

        All functions are timed at one size before the next size. In ``subjects`` the reference of
        each function comes first. A size that equals an earlier one for a function is skipped.
        """
        shapes = list(shapes)
        functions: dict[str, list[Subject]] = {}
        for subject in subjects:
            functions.setdefault(subject.function, []).append(subject)
        sizes_of = [_different(function, shapes) for function in functions]
        for dtype in dtypes:
            for turn in zip_longest(*sizes_of):
                for these, sizes in zip(functions.values(), turn, strict=True):
                    if sizes is not None:
                        yield from self._beside(these, sizes, dtype)

    def _beside(self, subjects: list[Subject], sizes: Sizes, dtype: str) -> Iterator[Row]:
        beside: dict[str, Row] = {}
        for subject in subjects:
            for row in self._of(subject, sizes, dtype):
                beside.setdefault(row.kernel, row)
                yield _compared(row, beside)

    def _of(self, subject: Subject, sizes: Sizes, dtype: str) -> Iterator[Row]:
        contract = FUNCTIONS.get(subject.function)
        row = Row(
            operation=subject.kernel.operation,
            function=subject.function,
            kernel=subject.kernel.name,
            package=subject.component.plugin.package,
            version=subject.component.plugin.version,
            dtype=dtype,
            shape=contract.shown(sizes) if contract else "",
        )
        if reason := refusal(subject, situation(self.device, dtype, sizes)):
            yield replace(row, reason=reason)
            return
        kind = self.device.kind
        make = _of_function if subject.reference else _of_module
        yield self._measured(row, sizes, lambda: make(subject, sizes, dtype, kind))
        if row.kernel == REFERENCE and subject.reference and self.compiles:
            compiled = replace(row, kernel=COMPILED)
            yield self._measured(
                compiled, sizes, lambda: _of_function(subject, sizes, dtype, kind, compiled=True)
            )

    def _measured(self, row: Row, sizes: Sizes, make: Callable[[], _Callable]) -> Row:
        if time.monotonic() >= self.until:
            return replace(row, reason="the time given was over")
        import torch

        if self.device.kind == "cuda":
            gc.collect()  # autograd graphs hold memory
            torch.cuda.empty_cache()
        try:
            return self._timed(row, sizes, make())
        except torch.OutOfMemoryError:
            return replace(row, reason="out of memory")
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            return replace(row, reason=f"failed: {words[:300]}", failed=True)

    def _timed(self, row: Row, sizes: Sizes, call: _Callable) -> Row:
        import torch

        kind, contract = self.device.kind, FUNCTIONS[row.function]
        if contract.backward is None:
            call.forward()
            peak = peak_memory(call.forward, kind)
            alone = timed(call.forward, kind, self.seconds)
            passes = {FORWARD: self._pass(alone, contract.forward(sizes), row.dtype)}
            return replace(row, passes=passes, peak_memory=peak, launch=alone.by)
        weights = [_weight(one) for one in call.forward()]

        def both() -> object:
            return torch.autograd.grad(call.forward(), call.leaves, weights, allow_unused=True)

        both()  # compiles and tunes; the peak excludes both
        peak = peak_memory(both, kind)
        forward, together = (timed(each, kind, self.seconds) for each in (call.forward, both))
        works = {FORWARD: contract.forward(sizes), BACKWARD: contract.backward(sizes)}
        works[BOTH] = _sum(works[FORWARD], works[BACKWARD])
        passes = {
            FORWARD: self._pass(forward, works[FORWARD], row.dtype),
            BOTH: self._pass(together, works[BOTH], row.dtype),
        }
        if (difference := together.median - forward.median) > 0:
            backward = Timing(difference, difference, difference, together.by)
            found = self._pass(backward, works[BACKWARD], row.dtype)
            passes[BACKWARD] = replace(found, low=None, high=None)
        return replace(row, passes=passes, peak_memory=peak, launch=together.by)

    def _pass(self, timing: Timing, work: Work, dtype: str) -> Pass:
        import torch

        moved = work.bytes(getattr(torch, dtype).itemsize)
        return Pass(
            seconds=timing.median,
            low=timing.low,
            high=timing.high,
            flops=work.flops,
            bytes=moved,
            flops_per_second=work.flops / timing.median,
            bytes_per_second=moved / timing.median,
            bound=self.ceiling.bound(work.flops, moved, dtype),
            fraction=self.ceiling.seconds(work.flops, moved, dtype) / timing.median,
        )


def _of_function(
    subject: Subject, sizes: Sizes, dtype: str, device: str, *, compiled: bool = False
) -> _Callable:
    """Return the kernel as a function, which needs no torchtitan."""
    import torch

    assert subject.reference is not None
    function = resolve(subject.reference, subject.component)
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(function, dynamic=False)
    contract = FUNCTIONS[subject.function]
    inputs, others = prepared(contract, sizes, getattr(torch, dtype), device, _maker(dtype, device))
    leaves = list(inputs.values())
    return _Callable(lambda: outputs(contract.call(function, *leaves, *others)), leaves)


def _of_module(subject: Subject, sizes: Sizes, dtype: str, device: str) -> _Callable:
    """Return the kernel as the module that replaces torchtitan's."""
    import torch

    from atom.titan.boot import boot

    boot(device)
    contract = operations.contract_of(subject.kernel.operation)
    assert contract is not None  # else it is refused before
    implementation = Implementation(contract, subject.component)
    node = implementation.node(sizes)
    module = implementation.module(node, device, getattr(torch, dtype))
    make = _maker(dtype, device)
    inputs = {
        name: tensor.requires_grad_() for name, tensor in contract.inputs(sizes, make).items()
    }
    parameters = list(module.parameters()) if hasattr(module, "parameters") else []
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(make(*parameter.shape))
    return _Callable(
        lambda: [contract.call(module, inputs, node, sizes)], [*inputs.values(), *parameters]
    )


def _maker(dtype: str, device: str) -> Callable[..., torch.Tensor]:
    """Return a function that makes random tensors of a shape on the device, some values large."""
    import torch

    return lambda *shape: torch.randn(shape, device=device, dtype=getattr(torch, dtype))


def _weight(output: torch.Tensor) -> torch.Tensor:
    """Return the gradient of an output; 1 for a loss, as in training."""
    import torch

    if output.dim() == 0:
        return torch.ones_like(output)
    return torch.randn_like(output)


def _sum(one: Work, other: Work) -> Work:
    return Work(one.flops + other.flops, one.elements + other.elements, one.other + other.other)


def _different(function: str, shapes: list[Sizes]) -> list[Sizes]:
    contract = FUNCTIONS.get(function)
    if contract is None:
        return shapes[:1]
    found: dict[str, Sizes] = {}
    for sizes in shapes:
        found.setdefault(contract.shown(sizes), sizes)
    return list(found.values())


def _compared(row: Row, beside: dict[str, Row]) -> Row:
    """Return ``row`` with its speed-up over the rows timed before."""
    passes = {
        name: replace(
            one,
            speedup={
                other: beside[other].passes[name].seconds / one.seconds
                for other in (REFERENCE, COMPILED)
                if other in beside and name in beside[other].passes
            },
        )
        for name, one in row.passes.items()
    }
    return replace(row, passes=passes)
