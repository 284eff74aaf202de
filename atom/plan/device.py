"""Describe devices as data, for the choice of kernels and for plans.

A description is a YAML file in ``atom/plan/devices/``, each number with its source beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atom.errors import UserError, nearest

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


def named(name: str, *, key: str = "device") -> DeviceDescription:
    """Return the description of the device ``name``.

    Raises:
        UserError: the name is unknown.
    """
    if name not in names():
        raise UserError(
            f"there is no description of such a device; {nearest(name, names())}",
            key=key,
            value=name,
        )
    data: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    capability = data.pop("capability")
    memory = data.pop("memory_gib")
    return DeviceDescription(
        name=name,
        capability=None if capability is None else (int(capability[0]), int(capability[1])),
        memory=round(memory * GIB),
        flops={dtype: float(value) for dtype, value in data.pop("flops").items()},
        products={dtype: float(value) for dtype, value in data.pop("products", {}).items()},
        **data,
    )
