"""The choice of kernels: the first that fits, a reason for every other, no silent fallback."""

from __future__ import annotations

import pytest

from atom.errors import UserError
from atom.host import Host
from atom.titan.device import DeviceDescription
from atom.titan.kernels import choose

CPU = DeviceDescription("cpu")
A100 = DeviceDescription("cuda", (8, 0))
V100 = DeviceDescription("cuda", (7, 0))


@pytest.fixture(scope="module")
def host() -> Host:
    return Host.load()


def attention(host: Host, preference: object, device: DeviceDescription, cp: bool = False) -> str:
    choices = choose(preference, host, device, context_parallel=cp)  # type: ignore[arg-type]
    choice = next(choice for choice in choices if choice.operation == "attention")
    return choice.kernel.declaration.name


def test_auto_takes_the_best_that_fits(host: Host) -> None:
    assert attention(host, {"default": "auto"}, CPU) == "reference"
    assert attention(host, {"default": "auto"}, A100) == "flex"
    assert attention(host, {}, A100) == "flex"


def test_every_operation_has_a_reference_that_runs_everywhere(host: Host) -> None:
    for device in (CPU, V100, A100):
        for choice in choose({"default": "reference"}, host, device, context_parallel=True):
            assert choice.kernel.declaration.name == "reference"


def test_a_list_is_an_order_of_preference(host: Host) -> None:
    order = {"attention": ["flex_flash", "varlen", "reference"]}
    assert attention(host, order, A100) == "varlen"
    assert attention(host, order, A100, cp=True) == "reference"
    assert attention(host, order, V100) == "reference"


def test_reasons_are_kept(host: Host) -> None:
    choices = choose({"attention": ["flex_flash", "flex"]}, host, A100, context_parallel=False)
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
