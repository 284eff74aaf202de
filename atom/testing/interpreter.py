"""Run a Triton kernel on the CPU, in Triton's interpreter.

Triton decides on interpretation at import, so this needs its own process.
"""

from __future__ import annotations

import json
import os
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
    result = subprocess.run(
        [sys.executable, "-P", "-m", __name__, component.address],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [f"the interpreter's process failed: {last}"]
    found: list[str] = json.loads(result.stdout.splitlines()[-1])
    return found


def _main(address: str) -> list[str]:
    from atom.titan.boot import boot

    boot("cpu")
    host = Host.load()
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
    print(json.dumps(_main(sys.argv[1])))
