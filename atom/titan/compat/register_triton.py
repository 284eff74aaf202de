"""List the repairs of Triton for compiling on a machine without a GPU. Data only."""

from __future__ import annotations

from atom.io.repair import Repair

_PROBES = "atom.testing.probes.engine"
_COMPILING = "in the tests, while kernels are compiled for a GPU that is not there"

TRITON_DRIVER = Repair(
    target="triton.runtime.driver:driver._active",
    reason="Triton asks the driver of a GPU what to compile for.",
    version="triton 3.9.0",
    upstream="docs/upstream/triton-compile.md",
    remove_when="A jitted function can be compiled for a target that is given.",
    applied=_COMPILING,
    where="atom/testing/compiler.py",
    sources={"triton.runtime.driver:DriverConfig": "dc5e5384"},
    probe=f"{_PROBES}:triton_needs_a_driver",
)
TRITON_RUN = Repair(
    target="triton.runtime.jit:JITFunction.run",
    reason="A Triton kernel is compiled by launching it.",
    version="triton 3.9.0",
    upstream="docs/upstream/triton-compile.md",
    remove_when="A jitted function can be compiled for a target that is given.",
    applied=_COMPILING,
    where="atom/testing/compiler.py",
    sources={"triton.runtime.jit:JITFunction.run": "05cbf8bc.3293f3bc"},
    probe=f"{_PROBES}:triton_compiles_by_launching",
)
TRITON_BENCH = Repair(
    target="triton.runtime.autotuner:Autotuner._bench",
    reason="An autotuned kernel is timed on a GPU before it is compiled for use.",
    version="triton 3.9.0",
    upstream="docs/upstream/triton-compile.md",
    remove_when="A jitted function can be compiled for a target that is given.",
    applied=_COMPILING,
    where="atom/testing/compiler.py",
    sources={"triton.runtime.autotuner:Autotuner._bench": "3745df5a.4338ab90"},
    probe=f"{_PROBES}:triton_times_on_a_gpu",
)

TRITON = (
    TRITON_DRIVER,
    TRITON_RUN,
    TRITON_BENCH,
)
