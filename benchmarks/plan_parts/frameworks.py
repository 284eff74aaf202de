"""Read the GPU, network and execution of a published row: what its framework is known to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from atom.plan.device import DeviceDescription, named
from atom.plan.execution import (
    BFLOAT16,
    COMPILED,
    CUDNN,
    DELAYED,
    EAGER,
    FLASH1,
    FLASH2,
    FSDP,
    KERNELS,
    MXFP8,
    ROWWISE,
    TENSORWISE,
    UNFUSED,
    ZERO1,
    Execution,
)
from atom.plan.model import FULL, NONE, SELECTIVE

GPUS = {"A100": "a100", "H100": "h100", "H200": "h200", "B200": "b200"}


class UnfitError(Exception):
    """A row that cannot be predicted; the message says why."""


def is_megatron(row: Mapping[str, Any]) -> bool:
    return any(name in str(row.get("framework")) for name in ("Megatron", "NeMo"))


def is_old(row: Mapping[str, Any]) -> bool:
    """Return whether the row is older than fused attention and overlapped data parallelism."""
    return str(row.get("date")) < "2023"


def is_composer(row: Mapping[str, Any]) -> bool:
    return "Composer" in str(row.get("framework"))


def device(row: Mapping[str, Any]) -> DeviceDescription:
    """Return the device of a row, with its power cap and network.

    Raises:
        UnfitError: there is no description of such a GPU.
    """
    hardware = row["hardware"]
    gpu = hardware["gpu"]
    name = next((file for start, file in GPUS.items() if gpu.startswith(start)), None)
    if name is None:
        raise UnfitError(f"no description of {gpu}")
    for form in ("PCIe", "NVL"):
        name = f"h100_{form.lower()}" if form in gpu and name == "h100" else name
    # Where torchtitan's tables name no part, they are of the same machines as those that do.
    if "HBM2e" in gpu or (gpu == "H100" and str(row.get("framework")).startswith("torchtitan")):
        name = "h100_hbm2e_500w"
    found = named(name)
    if "40GB" in gpu:
        found = replace(found, name="a100_40gb", memory_bandwidth=1.555e12)
    cap = hardware.get("power_cap_w")
    if cap:
        found = replace(found, power_limit=float(min(cap, found.power)))
    each = gigabits(str(hardware.get("nic") or ""), hardware.get("gpus_per_node") or 8)
    return replace(found, network_bandwidth=each / 8 * 1e9) if each else found


def gigabits(nic: str, gpus: int) -> float:
    """Return the Gb/s of a GPU that the description of a network tells; 0 if it tells none."""
    several = re.search(r"(\d+)\s*x\s*(\d+) Gb/s", nic)
    if several:
        return int(several[1]) * int(several[2]) / gpus
    one = re.search(r"([\d.]+) (G|T)b/s", nic)
    if not one:
        return 0.0
    speed = float(one[1]) * (1000 if one[2] == "T" else 1)
    return speed / gpus if "per node" in nic else speed


def precision(row: Mapping[str, Any]) -> str:
    """Return the precision of the layers' products."""
    text = row["precision"].lower()
    if "nvfp4" in text:
        raise UnfitError("NVFP4")
    if "rowwise" in text:
        return ROWWISE
    if "mxfp8" in text or "fp8-mx" in text or "other gran" in text:
        return MXFP8
    if "tensorwise" in text:
        return TENSORWISE
    return DELAYED if text.startswith("fp8") else BFLOAT16


def execution(row: Mapping[str, Any]) -> Execution:
    """Return how the framework of a row executes it."""
    flags, megatron, old = row["flags"], is_megatron(row), is_old(row)
    titan = str(row.get("framework")).startswith("torchtitan")
    if old:
        kernel = UNFUSED
    elif megatron or row["hardware"]["gpu"].startswith("B200"):
        kernel = CUDNN
    else:
        kernel = FLASH1 if is_composer(row) and str(row.get("date")) < "2024-06" else FLASH2
    # torchtitan compiles where a row does not say.
    compiled = flags.get("compile", False) is True or (titan and flags.get("compile") == "not said")
    return Execution(
        products=precision(row),
        fusion=KERNELS if megatron else COMPILED if compiled else EAGER,
        attention=kernel,
        sharding=ZERO1 if megatron else FSDP,
        async_tp=bool(flags.get("async_tp")) or (megatron and not old),
        regathers=megatron,
        saves_products=not megatron,
        cached_weights=megatron,
        float8_gather=titan and "tensorwise" in row["precision"],
        sends_once="Megatron-Bridge" in str(row.get("framework")),
        overlaps_dp=not (megatron and old),
    )


def checkpointing(row: Mapping[str, Any]) -> str:
    """Return the mode of activation checkpointing."""
    text = str(row["flags"].get("ac", "none"))
    if "layer" in text or "n-th" in text:
        raise UnfitError("checkpointing of every other layer")
    if text.startswith("selective"):
        return SELECTIVE
    return FULL if text.startswith("full") else NONE
