"""Compile a Triton kernel for a GPU that this machine lacks; report failures and resource usage.

Triton compiles for a target, and its wheel includes the assembler; only a launch needs the device.
So a kernel is called with CPU tensors and compiled instead of launched; its outputs are
uninitialized memory. Triton caches compiled kernels by device, so this needs its own process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from atom.kernels.choose import missing
from atom.plugin import Kernel, Needs
from atom.registry.host import Component, Host, resolve
from atom.testing.interpreter import is_triton
from atom.titan.compat.register_triton import TRITON_BENCH, TRITON_DRIVER, TRITON_RUN
from atom.titan.contracts.cases import Case
from atom.titan.contracts.comparing import both
from atom.titan.contracts.comparison import Implementation, passes
from atom.titan.contracts.functions import FUNCTIONS, functions_of
from atom.titan.contracts.operations import contract_of
from atom.titan.contracts.sizes import REGULAR

SECONDS = 600
HOPPER = (9, 0)


@dataclass(frozen=True)
class Compiled:
    """A kernel as compiled for the GPU.

    Attributes:
        name: name of the function.
        num_warps: warps per program.
        registers: registers per thread.
        spilled: bytes per thread spilled to local memory.
        shared: bytes of shared memory per program.
        accesses: width in bytes -> number of global memory accesses of that width.
    """

    name: str
    num_warps: int
    registers: int
    spilled: int
    shared: int
    accesses: Mapping[int, int] = field(default_factory=dict, hash=False)


@contextmanager
def compiling(capability: tuple[int, int]) -> Iterator[list[Compiled]]:
    """Compile Triton kernels for a compute capability instead of launching them.

    The list holds the kernels compiled so far. Autotuned kernels use their first configuration.

    Raises:
        NotCompiledError: inside the context, at the launch of a kernel that Triton refuses.
    """
    from triton.backends.compiler import GPUTarget

    every: list[Compiled] = []
    known: set[int] = set()
    run = TRITON_RUN.original()

    def compile_only(self: Any, *arguments: Any, warmup: bool, **options: Any) -> Any:  # noqa: ARG001
        try:
            kernel = run(self, *arguments, warmup=True, **options)
        except Exception as error:
            raise NotCompiledError(f"{self.__name__}: {_last(error)}") from error
        if id(kernel) not in known:
            known.add(id(kernel))
            every.append(_described(self.__name__, kernel))
        return kernel

    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    with (
        TRITON_DRIVER.replaced(_Elsewhere(target)),
        TRITON_RUN.replaced(compile_only),
        TRITON_BENCH.replaced(lambda *_, **__: [0.0, 0.0, 0.0]),
    ):
        yield every


class NotCompiledError(Exception):
    """Raised if Triton refuses a kernel."""


def failures(component: Component) -> Sequence[str] | None:
    """Return a sentence for each compute capability and dtype for which a kernel does not compile.

    Return None if it has no Triton kernel.
    """
    if not is_triton(component):
        return None
    return _of_package(component.plugin.import_package)[component.address]


@cache
def _of_package(package: str) -> dict[str, list[str] | None]:
    """Return address -> failures for all kernels of a package in one process, since startup
    dominates.
    """
    result = subprocess.run(
        [sys.executable, "-P", "-m", __name__, package],
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, list[str] | None] = json.loads(result.stdout.splitlines()[-1])
    return found


def _main(package: str) -> dict[str, list[str] | None]:
    from atom.titan.boot import boot

    boot("cpu")
    return {
        component.address: _failures(component)
        for component in Host.load().components
        if component.plugin.import_package == package and isinstance(component.declaration, Kernel)
    }


def _failures(component: Component) -> list[str] | None:
    kernel = component.declaration
    assert isinstance(kernel, Kernel)
    if missing(kernel.needs, {}):
        return None
    found: list[str] = []
    compiled = 0
    for capability in _targets(kernel.needs):
        for dtype in kernel.tolerance:
            where = f"for compute capability {'.'.join(map(str, capability))}, {dtype}"
            with compiling(capability) as every:
                for attempt in _attempts(component, kernel, dtype):
                    try:
                        attempt()
                    except NotCompiledError as error:
                        found.append(f"{where}: {error}")
                    except Exception as error:
                        # Other kernels can need the device, or actual values.
                        if kernel.needs.triton:
                            found.append(f"{where}: ended before its last kernel: {_last(error)}")
            compiled += len(every)
    if kernel.needs.triton and not compiled and not found:
        return ["no kernel of it is launched"]
    return found if found or compiled else None


def _targets(needs: Needs) -> list[tuple[int, int]]:
    """Return Hopper if the kernel supports it, and the oldest supported compute capability."""
    oldest, below = needs.capability or HOPPER, needs.capability_below
    return sorted(
        {oldest, HOPPER} if oldest <= HOPPER and (not below or below > HOPPER) else {oldest}
    )


def _attempts(component: Component, kernel: Kernel, dtype: str) -> Iterator[Callable[[], object]]:
    contract, sizes = contract_of(kernel.operation), REGULAR[0]
    if contract is not None:
        tested = Implementation(contract, component)
        yield lambda: passes(tested, Case(sizes, dtype), "cpu")()
    for name, reference in functions_of(kernel).items():
        if name in FUNCTIONS:  # another test reports it
            function = resolve(reference, component)
            yield partial(both, function, FUNCTIONS[name], sizes, dtype, "cpu")


class _Elsewhere:
    """A stand-in for the driver that Triton queries before a launch."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def _described(name: str, kernel: Any) -> Compiled:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = {word: int(number) for word, number in re.findall(r"\b([A-Z]+):(\d+)", said)}
    return Compiled(
        name=name,
        num_warps=kernel.metadata.num_warps,
        registers=used["REG"],
        spilled=used["STACK"] + used["LOCAL"],
        shared=kernel.metadata.shared,
        accesses=_accesses(kernel.asm["ptx"]),
    )


def _accesses(ptx: str) -> dict[int, int]:
    found: Counter[int] = Counter()
    for vector, bits in re.findall(r"(?:ld|st)\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)\s", ptx):
        found[int(vector or 1) * int(bits) // 8] += 1
    for size in re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], (0x\w+|\d+)", ptx):
        found[int(size, 0)] += 1
    return dict(sorted(found.items()))


def _last(error: BaseException) -> str:
    """Return the root cause of a Triton error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1])))
