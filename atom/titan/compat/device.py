"""Select and describe the device, and repair memory and FSDP on the CPU.

The other repairs that let torchtitan train on a CPU are in :mod:`atom.titan.compat.register`. Flex
attention has no backward pass on a CPU: a kernel plugin provides one.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from atom.plan.device import DeviceDescription, named

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def pick(wanted: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: ``cuda`` is requested and not available.
    """
    import torch

    from atom.errors import UserError

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            "torch finds no CUDA device here", valid="auto, cpu", key="device", value=wanted
        )
    if wanted == "auto":
        return "cuda" if available else "cpu"
    return wanted


def cores() -> int:
    """Return the number of cores available to this process."""
    return len(os.sched_getaffinity(0))


def describe(kind: str) -> DeviceDescription:
    """Describe this machine's device, for the choice of kernels and for plans.

    torch provides some values; the others come from the description with the nearest compute
    capability.
    """
    import torch

    if kind == "cpu":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        # Ranks on a CPU share its memory: one rank per core by default.
        return replace(named("cpu"), memory=total // cores())
    properties = torch.cuda.get_device_properties()
    hopper = "h200" if properties.total_memory > 100 * 2**30 else "h100"
    like = {9: hopper, 10: "b200"}.get(
        properties.major, "b200" if properties.major > 10 else "a100"
    )
    return replace(
        named(like),
        name=properties.name,
        capability=(properties.major, properties.minor),
        memory=properties.total_memory,
        devices_per_node=torch.cuda.device_count(),
    )


def keep_freed_memory() -> None:
    """Let this process keep memory that a step on the CPU frees, for the next step.

    By default glibc returns large blocks to the kernel at once, and thousands of page faults per
    step fetch them again. Keeping them saves a small model about 8 % of the processor time of a
    step. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # <malloc.h>; glibc accepts at most 32 MiB for the first.
    for parameter, value in ((_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**30)):
        mallopt(parameter, value)


def mend_fsdp(model: torch.nn.Module) -> None:
    """Let FSDP reduce gradients over gloo with a sum; gloo lacks the scaled sum."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
