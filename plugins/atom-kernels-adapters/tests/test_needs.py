"""Each kernel is refused for what it lacks, in words, and fits where that is there."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from atom.errors import UserError
from atom.kernels.choose import Situation, choose, misfit
from atom.plan.device import DeviceDescription, named
from atom.plugin import Kernel
from atom.registry.host import Host
from atom_kernels_adapters import atom_kernels

KERNELS = {f"{kernel.operation}/{kernel.name}": kernel for kernel in atom_kernels()}
CPU, A100, H100 = DeviceDescription("cpu"), named("a100"), named("h100")
BLACKWELL = ("mxfp8", "nvfp4")
SIZES = {"dim": (4096,), "head_dim": (128,), "hidden_dim": (14336,), "vocab_size": (128256,)}

each = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def theirs(kernel: Kernel) -> Requirement:
    """Return what the kernel asks of the package that it is from."""
    return Requirement(kernel.needs.packages[0])


def layout(kernel: Kernel) -> dict[str, int]:
    """Return a layout in which the kernel works."""
    tensor_parallel = 2 if kernel.needs.tensor_parallel_only else 1
    return {"expert_parallel": 8, "tensor_parallel": tensor_parallel}


def device(kernel: Kernel) -> DeviceDescription:
    """Return a device on which the kernel works."""
    return named("b200") if kernel.name in BLACKWELL else H100


def installed(package: Requirement) -> bool:
    try:
        return metadata.version(package.name) in package.specifier
    except metadata.PackageNotFoundError:
        return False


@each
def test_a_package_that_is_missing_is_named(kernel: Kernel) -> None:
    package = theirs(kernel)
    reason = misfit(kernel, Situation(device(kernel), "bfloat16", SIZES, **layout(kernel)))
    assert reason == (
        None if installed(package) else f"needs the package {kernel.needs.packages[0]}"
    )


@each
def test_with_its_package_it_fits_a_device_and_with_an_old_one_not(kernel: Kernel) -> None:
    package = theirs(kernel)

    def reason(version: str | None) -> str | None:
        supposed = {package.name: version}
        where = Situation(device(kernel), "bfloat16", SIZES, **layout(kernel), supposed=supposed)
        return misfit(kernel, where)

    assert reason(None) is None
    assert reason("0.0.1") == f"needs {kernel.needs.packages[0]}, and 0.0.1 is installed"


@each
def test_a_device_that_cannot_is_told_so(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    supposed = {theirs(kernel).name: None}
    assert "needs cuda" in str(misfit(kernel, Situation(CPU, supposed=supposed)))
    old = misfit(kernel, Situation(DeviceDescription("cuda", (7, 5)), supposed=supposed))
    assert "and this device has 7.5" in str(old)
    a100 = Situation(A100, "bfloat16", SIZES, **layout(kernel), supposed=supposed)
    of_a100 = misfit(kernel, a100)
    is_for_hopper = kernel.name.startswith(("quack", "float8", "deepep", "hybridep", *BLACKWELL))
    assert (of_a100 is not None) == is_for_hopper


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        ("linear/float8_rowwise", "needs hidden_dim to be a multiple of 16, and it is 1000"),
        ("linear_cross_entropy/quack", "needs vocab_size to be a multiple of 8, and it is 50257"),
        ("linear_cross_entropy/cut_cross_entropy", "does not work under tensor parallelism"),
        ("cross_entropy/liger", "does not work under tensor parallelism"),
        ("linear/float8_tensorwise_gathered", "does not work under tensor parallelism"),
        ("moe_dispatch/deepep", "needs expert parallelism"),
    ],
)
def test_sizes_and_layouts_that_do_not_fit(kernel: str, reason: str) -> None:
    where = Situation(
        H100,
        dtype="bfloat16",
        sizes={"hidden_dim": (1000,), "vocab_size": (50257,)},
        tensor_parallel=2 if "tensor" in reason else 1,
        supposed={theirs(KERNELS[kernel]).name: None},
    )
    assert misfit(KERNELS[kernel], where) == reason


def test_float8_is_for_bfloat16() -> None:
    kernel = KERNELS["linear/float8_tensorwise"]
    where = Situation(H100, dtype="float32", sizes=SIZES, supposed={"torchao": None})
    assert misfit(kernel, where) == "supports bfloat16, and the run computes in float32"


def test_what_is_not_measured_comes_after_the_references() -> None:
    assert all(kernel.priority < 0 for kernel in KERNELS.values())


def test_listing_imports_neither_their_packages_nor_torch() -> None:
    code = (
        "import atom_kernels_adapters, json, sys; list(atom_kernels_adapters.atom_kernels());"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(result.stdout))
    theirs = {"cut_cross_entropy", "helion", "liger_kernel", "quack", "torchao"}
    assert not loaded & {"torch", "torchtitan", "triton", *theirs}


def test_of_a_layer_and_a_part_of_it_one_is_replaced() -> None:
    supposed = {theirs(kernel).name: None for kernel in KERNELS.values()}
    where = Situation(H100, dtype="bfloat16", sizes=SIZES, supposed=supposed)
    host = Host.load()
    both: dict[str, str | list[str]] = {"linear": "float8_rowwise", "feed_forward": "titan_fused"}
    with pytest.raises(UserError, match="one node is a part of the other"):
        choose(both, host, where)
    chosen = {c.operation: c.name for c in choose({"linear": "float8_rowwise"}, host, where)}
    assert chosen["linear"] == "float8_rowwise"
    assert chosen["feed_forward"] == "reference"


@pytest.mark.slow
def test_the_command_refuses_them_where_they_do_not_fit() -> None:
    overrides = (
        "device=cpu",
        "architecture=llama3_8b",
        "tokenizer=bytes",
        "kernels.rms_norm=liger",
    )
    result = subprocess.run(
        [sys.executable, "-m", "atom", "kernels", "explain", *overrides],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "liger needs cuda, and this is cpu" in result.stderr
    assert "Traceback" not in result.stderr
