"""The choice of kernels: the first that fits, a reason for every other, no silent fallback."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from atom.errors import UserError
from atom.kernels.choose import Situation, choose
from atom.plan.device import DeviceDescription, named
from atom.plugin import Kernel, Needs
from atom.registry.host import Component, Host
from atom.registry.installed import Plugin
from atom.testing.kernel_fit import takes
from atom.titan.contracts.cases import Case
from atom.titan.contracts.sizes import ODD, REGULAR

Command = Callable[..., subprocess.CompletedProcess[str]]

CPU = DeviceDescription("cpu")
A100 = DeviceDescription("cuda", (8, 0))
V100 = DeviceDescription("cuda", (7, 0))


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load()


def attention(host: Host, preference: object, device: DeviceDescription, cp: bool = False) -> str:
    choices = choose(preference, host, Situation(device, context_parallel=1 + cp))  # type: ignore[arg-type]
    choice = next(choice for choice in choices if choice.operation == "attention")
    return choice.kernel.declaration.name


def test_auto_takes_the_best_that_fits(host: Host) -> None:
    assert attention(host, {"default": "auto"}, CPU) == "reference"
    assert attention(host, {"default": "auto"}, A100) == "flex"
    assert attention(host, {}, A100) == "flex"


def test_every_operation_has_a_reference_that_runs_everywhere(host: Host) -> None:
    for device in (CPU, V100, A100):
        everywhere = Situation(device, context_parallel=2, tensor_parallel=2)
        for choice in choose({"default": "reference"}, host, everywhere):
            assert choice.name == "reference"


def test_a_list_is_an_order_of_preference(host: Host) -> None:
    order = {"attention": ["flex_flash", "varlen", "reference"]}
    assert attention(host, order, A100) == "varlen"
    assert attention(host, order, A100, cp=True) == "reference"
    assert attention(host, order, V100) == "reference"


def test_reasons_are_kept(host: Host) -> None:
    choices = choose({"attention": ["flex_flash", "flex"]}, host, Situation(A100))
    chosen = next(choice for choice in choices if choice.operation == "attention")
    assert chosen.rejected == (
        ("flex_flash", "needs compute capability 9.0, and this device has 8.0"),
    )


@pytest.mark.parametrize(
    ("preference", "device", "cp", "says"),
    [
        ({"attention": "flex"}, CPU, False, "flex needs cuda, and this is cpu"),
        ({"attention": "varlen"}, A100, True, "varlen does not work under context parallelism"),
        ({"attention": "flash9"}, A100, False, "there is no such kernel"),
        ({"default": "flash9"}, A100, False, "there is no such kernel"),
        ({"atention": "flex"}, A100, False, "did you mean attention"),
    ],
)
def test_what_does_not_fit_stops_the_run(
    host: Host, preference: dict, device: DeviceDescription, cp: bool, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        attention(host, preference, device, cp)


# ---------------------------------------------------------------------------- what is needed

H100 = named("h100")
PLUGIN = Plugin(entry_point="x", package="x", version="1", module="x", import_package="x")


def offering(*kernels: Kernel) -> Host:
    return Host((PLUGIN,), tuple(Component(PLUGIN, kernel) for kernel in kernels))


def kernel(name: str, operation: str = "rms_norm", **fields: object) -> Kernel:
    return Kernel(operation=operation, name=name, summary=name, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (Needs(devices=("cpu",)), "needs cpu, and this is cuda"),
        (Needs(capability=(10, 0)), "needs compute capability 10.0, and this device has 9.0"),
        (
            Needs(capability_below=(9, 0)),
            "supports compute capabilities below 9.0, and this device has 9.0",
        ),
        (Needs(multiples={"dim": 3}), "needs dim to be a multiple of 3, and it is 4096"),
        (Needs(largest={"head_dim": 64}), "needs head_dim to be at most 64, and it is 128"),
        (Needs(smallest={"head_dim": 256}), "needs head_dim to be at least 256, and it is 128"),
        (Needs(multiples={"vocab_size": 8}), None),
        (Needs(tensor_parallel=False), "does not work under tensor parallelism"),
        (Needs(packages=("no-such-package",)), "needs the package no-such-package"),
        (Needs(packages=("packaging>=9999",)), "needs packaging>=9999"),
        (Needs(packages=("supposed>=2",)), None),
        (Needs(packages=("supposed>=4",)), "needs supposed>=4, and 3 is installed"),
        (Needs(triton=True), None),
    ],
)
def test_needs_are_held_against_the_situation(needs: Needs, reason: str | None) -> None:
    where = Situation(
        H100,
        dtype="bfloat16",
        sizes={"dim": (4096,), "head_dim": (128,)},
        tensor_parallel=2,
        supposed={"supposed": "3"},
    )
    host = offering(kernel("fast", needs=needs, priority=1), kernel("reference"))
    (choice,) = choose({}, host, where)
    assert choice.name == ("fast" if reason is None else "reference")
    if reason is not None:
        assert choice.rejected[0][0] == "fast"
        assert choice.rejected[0][1].startswith(reason)


def test_a_dtype_that_a_kernel_has_no_tolerance_for_is_not_taken() -> None:
    host = offering(kernel("half", tolerance={"bfloat16": 1e-2}, priority=1), kernel("reference"))
    (choice,) = choose({}, host, Situation(CPU, dtype="float32"))
    assert choice.rejected == (("half", "supports bfloat16, and the run computes in float32"),)


def test_the_kit_compares_at_sizes_that_a_kernel_takes() -> None:
    in_eights = kernel("eights", needs=Needs(multiples={"head_dim": 8}, smallest={"dim": 64}))
    assert takes(in_eights, Case(REGULAR[0], "float32"))
    assert not any(takes(in_eights, Case(sizes, "float32")) for sizes in ODD)
    assert all(takes(kernel("any"), Case(sizes, "float32")) for sizes in ODD)


def test_triton_on_a_cpu_is_interpreted_and_only_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    host = offering(kernel("fast", needs=Needs(triton=True), priority=1), kernel("reference"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="TRITON_INTERPRET=1"):
        choose({"rms_norm": "fast"}, host, Situation(CPU))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose({"rms_norm": "fast"}, host, Situation(CPU))[0].name == "fast"
    (choice,) = choose({}, host, Situation(CPU))
    assert choice.name == "reference"
    assert "choose it by name" in choice.rejected[0][1]


def test_only_one_of_two_nested_nodes_is_replaced() -> None:
    """torchtitan would refuse both; the one that the user names goes first."""
    host = offering(
        kernel("whole", "linear_cross_entropy", override="a:b", priority=1),
        kernel("reference", "linear_cross_entropy"),
        kernel("part", "cross_entropy", override="a:c", priority=1),
        kernel("reference", "cross_entropy"),
    )

    def names(**preferences: str | list[str]) -> dict[str, str]:
        return {c.operation: c.name for c in choose(preferences, host, Situation(H100))}

    assert names() == {"linear_cross_entropy": "whole", "cross_entropy": "reference"}
    assert names(cross_entropy="part") == {
        "linear_cross_entropy": "reference",
        "cross_entropy": "part",
    }
    with pytest.raises(UserError, match="cannot be combined with the kernel of"):
        names(cross_entropy="part", linear_cross_entropy="whole")


def test_operations_that_the_model_lacks_have_no_kernel() -> None:
    host = offering(kernel("reference"), kernel("reference", "rope"))
    where = Situation(H100, operations=frozenset({"rope"}))
    assert [choice.operation for choice in choose({}, host, where)] == ["rope"]


# ---------------------------------------------------------------------------- the commands


def test_kernels_are_listed_with_their_needs(forked: Command) -> None:
    listed = forked("kernels", "--operation", "attention")
    assert listed.returncode == 0
    assert "compute capability 9.0 or newer" in listed.stdout
    found = json.loads(forked("kernels", "--json").stdout)
    flex = next(row for row in found if row["kernel"] == "flex_flash")
    assert flex["needs"]["packages"] == ["flash-attn-4"]
    assert flex["replaces"] == "torchtitan.models.common.attention:FlexAttention"
    wrong = forked("kernels", "--operation", "atention")
    assert wrong.returncode == 2
    assert "attention" in wrong.stderr


def test_explain_answers_for_a_device_that_is_elsewhere(forked: Command) -> None:
    asked = ("kernels", "explain", "--json", "architecture=llama3_8b", "device=h100")
    result = forked(*asked)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["sizes"] == {"dim": [4096], "head_dim": [128], "hidden_dim": [14336]}
    kernels = {row["operation"]: row for row in found["kernels"]}
    assert kernels["attention"]["chosen"] == "flex"
    assert kernels["attention"]["passed_over"]["flex_flash"] == "needs the package flash-attn-4"
    assert "moe_dispatch" not in kernels

    supposed = forked("kernels", "explain", "--with", "flash-attn-4", *asked[2:])
    kernels = {row["operation"]: row for row in json.loads(supposed.stdout)["kernels"]}
    assert "fits" in kernels["attention"]["passed_over"]["flex_flash"]


def test_explain_refuses_what_does_not_fit(forked: Command) -> None:
    refused = forked(
        "kernels",
        "explain",
        "device=a100",
        "architecture=llama3_8b",
        "kernels.attention=flex_flash",
    )
    assert refused.returncode == 2
    assert "needs compute capability 9.0, and this device has 8.0" in refused.stderr
    assert "command line" in refused.stderr
