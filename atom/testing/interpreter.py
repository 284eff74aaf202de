"""Run a Triton kernel on the CPU, in Triton's interpreter.

Triton decides on interpretation at import, so this needs its own process. Its start takes longer
than most kernels, so one process imports everything once and forks for each kernel.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import select
import subprocess
import sys
from typing import Any

from atom.plugin import Kernel
from atom.registry.host import Component, Host, resolve
from atom.titan.contracts import comparing
from atom.titan.contracts.cases import Case
from atom.titan.contracts.comparison import Implementation, reference_of
from atom.titan.contracts.comparison import disagreements as compare
from atom.titan.contracts.functions import FUNCTIONS, functions_of
from atom.titan.contracts.operations import contract_of
from atom.titan.contracts.sizes import ODD, REGULAR

CASES = (
    Case(REGULAR[0], "float32"),
    Case(ODD[1], "float32"),
    Case(ODD[1], "float32", "transposed"),
    Case(ODD[1], "float32", "rows apart"),
    Case(ODD[1], "float32", gradient="transposed"),
    Case(ODD[1], "float32", gradient="expanded"),
)
"""Few, because the interpreter is slow. Other dtypes have one case."""

BACKENDS = ("spmd_types", "partial_dtensor")
"""Backends of tensor parallelism: the first passes plain tensors to modules, others
pass DTensors.
"""

SECONDS = 300


def disagreements(component: Component) -> list[str] | None:
    """Return how a kernel in the interpreter disagrees with its reference.

    Return None if it is not a Triton kernel.
    """
    if not is_triton(component):
        return None
    return _shared().disagreements(component.address)


class _Server:
    """The process that has Triton's interpreter imported."""

    def __init__(self) -> None:
        # One thread: the tensors are so small that more only add contention.
        environment = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def disagreements(self, address: str) -> list[str]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{address}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            self._end()
            return [f"the interpreter's process gave no answer in {SECONDS} s"]
        answer = process.stdout.readline()
        if not answer:
            self._end()
            return ["the interpreter's process has ended"]
        found: list[str] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _end(self) -> None:
        """Kill the process; another one starts for the next kernel."""
        self._process.kill()
        _shared.cache_clear()


@functools.cache
def _shared() -> _Server:
    """Return the server of this process, which lives as long as it does."""
    server = _Server()
    atexit.register(server.close)
    return server


def _serve() -> None:
    """Answer each line of stdin, the address of a kernel, with a line of disagreements."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # other output must not be read as an answer

    from atom.io.process import call
    from atom.titan.boot import boot

    boot("cpu")
    host = Host.load()
    gc.collect()
    gc.freeze()  # a GC pass in a child would break copy-on-write sharing with this process
    for line in sys.stdin:
        try:
            answer = call(functools.partial(_disagreements, line.strip(), host))
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            answer = [f"the interpreter's process failed: {words}"]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _disagreements(address: str, host: Host) -> list[str]:
    component = host.find("kernel", address)
    kernel = component.declaration
    assert isinstance(kernel, Kernel)
    contract = contract_of(kernel.operation)
    found: list[str] = []
    if contract is not None:
        others = [Case(REGULAR[0], dtype) for dtype in kernel.tolerance if dtype != "float32"]
        found += compare(
            Implementation(contract, component),
            reference_of(component, contract, host),
            iter([*CASES, *others]),
            {"float32": 1e-4} | dict(kernel.tolerance),
            "cpu",
        )
    # One dtype: float32 if the kernel supports it.
    dtype = min(kernel.tolerance, key=lambda each: each != "float32")
    for name, reference in functions_of(kernel).items():
        function, case = resolve(reference, component), (ODD[1], dtype)
        contracted = FUNCTIONS[name]
        found += comparing.disagreements(function, contracted, [case], kernel.tolerance, "cpu")
    return found


def is_triton(component: Component) -> bool:
    """Return whether a kernel is a Triton kernel.

    That is the case if its needs declare it, or if a module of its package contains a
    ``triton.jit`` function once the override is imported."""
    kernel = component.declaration
    assert isinstance(kernel, Kernel)
    if kernel.override is None:
        return False
    resolve(kernel.override, component)
    if kernel.needs.triton:
        return True
    from triton.runtime import KernelInterface

    package = component.plugin.import_package
    modules: list[Any] = [
        module
        for name, module in list(sys.modules.items())
        if name == package or name.startswith(f"{package}.")
    ]
    return any(isinstance(thing, KernelInterface) for m in modules for thing in vars(m).values())


if __name__ == "__main__":
    _serve()
