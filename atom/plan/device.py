"""Describe devices as data, for the choice of kernels and for plans.

A description is a YAML file in ``atom/plan/devices/``, each number with its source beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.errors import UserError, nearest
from atom.io import yaml_data
from atom.plan.constants import PRIORS

GIB = 2**30

FOLDER = Path(__file__).parent / "devices"


@dataclass(frozen=True)
class DeviceDescription:
    """A device of a run, and its links to other devices.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        capability: CUDA's compute capability; None on a CPU, or if unknown.
        name: as in ``device=h100``.
        memory: bytes that a program can allocate.
        flops: peak dense FLOP/s by dtype (``bfloat16``, ``float32``, …).
        memory_bandwidth: bytes/s.
        node_bandwidth: bytes/s from one device to the others of its node, in one direction.
        network_bandwidth: bytes/s from one device to those of other nodes, in one direction.
        devices_per_node: devices that ``node_bandwidth`` connects.
        reserve: bytes that the allocator holds for each byte in use at the peak.
        products: best measured FLOP/s of a matrix product by dtype; the peak where unknown.
        power: rated watts; 0 if unknown.
        power_limit: watts that the device is limited to; 0 if it is not.
        multiprocessors: units that compute tiles of a product.
        latency: seconds of the smallest collective in a node; 0 for the time model's own.
        constants: constants of the time model that were fitted to this device, by name.
        error: largest relative error of a fitted device's own runs; 0 if it was not fitted.
    """

    kind: str
    capability: tuple[int, int] | None = None
    name: str = ""
    memory: int = 0
    flops: dict[str, float] | None = None
    memory_bandwidth: float = 0.0
    node_bandwidth: float = 0.0
    network_bandwidth: float = 0.0
    devices_per_node: int = 1
    reserve: float = 1.0
    products: dict[str, float] | None = None
    power: float = 0.0
    power_limit: float = 0.0
    multiprocessors: int = 1
    latency: float = 0.0
    constants: dict[str, float] | None = None
    error: float = 0.0

    def __hash__(self) -> int:
        return hash((self.name, self.memory_bandwidth, self.network_bandwidth, self.power_limit))

    @property
    def power_cap(self) -> float:
        """Return the watts that the device may take."""
        return self.power_limit or self.power

    def best(self, dtype: str) -> float:
        """Return the best measured FLOP/s of a product of ``dtype``; its peak where unknown.

        ``float8`` on a device without it is bfloat16.
        """
        flops = self.flops or {}
        if dtype == "float8" and dtype not in flops:
            dtype = "bfloat16"
        return (self.products or {}).get(dtype) or self.peak(dtype)

    def peak(self, dtype: str) -> float:
        """Return the peak FLOP/s of ``dtype``; of float32 if the device has no unit for it."""
        flops = self.flops or {}
        return flops.get(dtype, flops.get("float32", 1.0))


def names() -> list[str]:
    """Return the names of the device descriptions that ATOM ships."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def is_file(name: str) -> bool:
    """Return whether ``name`` is that of a file that describes a device."""
    return name.endswith((".yaml", ".yml"))


def named(name: str, *, key: str = "device") -> DeviceDescription:
    """Return the description of the device ``name``: one that ATOM ships, or a YAML file.

    Raises:
        UserError: there is none, or the file describes no device.
    """
    if name in names():
        return _described(name, _shipped(name))
    if not is_file(name):
        raise UserError(
            f"there is no description of such a device; {nearest(name, [*names(), 'FILE.yaml'])}",
            key=key,
            value=name,
        )
    try:
        text = yaml_data.text_of(Path(name), what="a device")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", key=key, value=name) from None
    data = yaml_data.load(text, name)
    if not isinstance(data, dict):
        raise UserError(f"{name} describes no device", valid=f"keys {', '.join(_KEYS)}")
    like = data.pop("like", None)
    if like is not None:
        if like not in names():
            raise UserError(f"{name} has like: {like}", valid=", ".join(names()))
        data = _shipped(like) | data
    return _described(name, data)


def _shipped(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml_data.load((FOLDER / f"{name}.yaml").read_text(), name)
    return data


_NUMBERS = (
    "memory_gib", "memory_bandwidth", "node_bandwidth", "network_bandwidth", "reserve", "power",
    "power_limit", "latency", "error",
)  # fmt: skip
_COUNTS = ("devices_per_node", "multiprocessors")
_RATES = {
    "flops": "FLOP/s by dtype", "products": "FLOP/s by dtype", "constants": "numbers by name",
}  # fmt: skip
_KEYS = ("kind", "capability", *_RATES, *_NUMBERS, *_COUNTS)
_OPTIONAL = (
    "products", "reserve", "power", "power_limit", "multiprocessors", "latency", "constants",
    "error",
)  # fmt: skip


def _described(name: str, data: dict[str, Any]) -> DeviceDescription:
    """Return the description in ``data``; refuse unknown, missing and impossible values."""
    for key in data:
        if key not in _KEYS:
            raise UserError(
                f"{name} has the unknown key {key}; {nearest(str(key), [*_KEYS, 'like'])}"
            )
    missing = [key for key in _KEYS if key not in data and key not in _OPTIONAL]
    if missing:
        raise UserError(
            f"{name} lacks {', '.join(missing)}",
            valid="all of a device, or `like: h100` and what differs",
        )
    if data["kind"] not in ("cpu", "cuda"):
        raise UserError(f"{name} has kind: {data['kind']}", valid="cpu, cuda")
    capability = data["capability"]
    if capability is not None and not (
        isinstance(capability, list)
        and len(capability) == 2
        and all(isinstance(part, int) for part in capability)
    ):
        raise UserError(f"{name} has capability: {capability}", valid="null, or such as [9, 0]")
    values: dict[str, Any] = {key: _number(name, key, data[key]) for key in _NUMBERS if key in data}
    for key in _COUNTS:
        if key in data:
            if not isinstance(data[key], int) or data[key] < 1:
                raise UserError(f"{name} has {key}: {data[key]}", valid="a whole number from 1")
            values[key] = data[key]
    for key in _RATES:
        if not isinstance(data.get(key, {}), dict):
            raise UserError(f"{name} has {key}: {data[key]}", valid=_RATES[key])
        rates = data.get(key, {}).items()
        if key == "constants":
            _known(name, data.get(key, {}))
        values[key] = {str(d): _number(name, f"{key}.{d}", rate) for d, rate in rates}
    return DeviceDescription(
        name=Path(name).stem if is_file(name) else name,
        kind=data["kind"],
        capability=None if capability is None else (capability[0], capability[1]),
        memory=round(values.pop("memory_gib") * GIB),
        **values,
    )


def _known(name: str, given: dict[Any, Any]) -> None:
    for constant in given:
        if constant not in PRIORS:
            raise UserError(
                f"{name} has the unknown constant constants.{constant}; "
                f"{nearest(str(constant), list(PRIORS))}"
            )


def _number(name: str, key: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{name} has {key}: {value}", valid="a number above 0")
    return number
