"""The device torchtitan trains on; with the CPU among the choices.

torchtitan 0.3.0 knows accelerators only. Eight things keep it from training on a CPU over gloo;
each is mended in one place, by the function named here:

1. its device globals are CUDA's when there is no accelerator      -> :func:`use`
2. it asks ``torch.cpu`` for memory statistics that it lacks       -> :class:`_CpuModule`
3. peak FLOPS default to an A100's, so that MFU would be a fiction -> :func:`_use_cpu`
4. attention masks are built by ``torch.compile``, which needs a
   C++ compiler on every machine and seconds on every rank         -> :mod:`.put_off`
5. FSDP's gradient divide factor asks gloo for an operation that
   it has not                                                      -> :func:`mend_fsdp`
6. flex attention has no backward pass on a CPU                    -> a kernel plugin's business
7. expert parallelism sends tokens by the list form of all-to-all,
   of which gloo's refuses the uneven sizes that routing makes     -> :mod:`atom.titan.compat.moe`
8. experts compute in bfloat16, whatever the run's precision       -> :mod:`atom.titan.compat.moe`
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import resource
import sys
import types
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from atom.io import caches
from atom.plan.device import DeviceDescription, named
from atom.titan.compat import put_off

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def pick(wanted: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: ``cuda`` is wanted and there is none.
    """
    import torch

    from atom.errors import UserError

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            "torch finds no CUDA device here; valid: auto, cpu", key="device", value=wanted
        )
    if wanted == "auto":
        return "cuda" if available else "cpu"
    return wanted


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def describe(kind: str) -> DeviceDescription:
    """Describe the device at hand, for the choice of kernels and for plans.

    What torch can tell is asked of it; the rest is that of the description with the nearest compute
    capability.
    """
    import torch

    if kind == "cpu":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        # Ranks on a CPU share its memory: one a core, where nothing else is said.
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


def use(device: str) -> None:
    """Make torchtitan train on ``device``. Call it before any other torchtitan module is imported.

    Raises:
        RuntimeError: torchtitan was imported for another device before.
        UserError: what torch compiles would be kept where another account can write.
    """
    caches.keep_compiled_code()
    # torchtitan imports torchao where it is installed, and torch tells its users what torchao's
    # developers should know.
    logging.getLogger("torch.utils._pytree").addFilter(_is_for_users)
    from torchtitan.tools import utils

    for name, module in sys.modules.items():
        if not name.startswith("torchtitan.") or module is utils:
            continue
        if getattr(module, "device_type", device) != device:
            raise RuntimeError(f"{name} was imported for {module.device_type}, not for {device}")
    if device == "cpu":
        if utils.device_type != "cpu":
            _use_cpu(utils)
    elif utils.device_type != device:
        raise RuntimeError(f"torchtitan is set up for {utils.device_type}, not for {device}")
    put_off.datasets()


def _is_for_users(record: logging.LogRecord) -> bool:
    return "Calling register_constant() on Enum subclasses is deprecated" not in record.getMessage()


def settled() -> str:
    """Return the device that torchtitan is set up for in this process: the best there is, if
    nobody has said so before. Kernels can be compared where there is no torchtitan to set up."""
    utils = sys.modules.get("torchtitan.tools.utils")
    kind = "cpu" if utils is not None and utils.device_type == "cpu" else pick("auto")
    if find_spec("torchtitan") is not None:
        use(kind)
    return kind


class _CpuModule(types.ModuleType):
    """``torch.cpu`` with what torchtitan asks of a device module. Memory is the process's own."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch.cpu, name)

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0  # torch.cpu says "cpu", which a barrier does not take for an index

    def get_device_name(self, _device: object = None) -> str:
        return "CPU"

    def get_device_properties(self, _device: object = None) -> types.SimpleNamespace:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return types.SimpleNamespace(name="CPU", total_memory=total)

    def memory_stats(self, _device: object = None) -> dict[str, int]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "active_bytes.all.peak": peak,
            "reserved_bytes.all.peak": peak,
            "num_alloc_retries": 0,
            "num_ooms": 0,
        }

    def reset_peak_memory_stats(self, _device: object = None) -> None:
        """The kernel keeps the peak of a process; it cannot be set back."""

    def empty_cache(self) -> None:
        """There is no cache to empty."""


def _use_cpu(utils: Any) -> None:
    utils.device_type = "cpu"
    utils.device_module = _CpuModule("atom.titan.compat.device.cpu")
    # An infinite peak makes torchtitan's MFU zero; ATOM leaves out an MFU of an unknown peak.
    utils.get_peak_flops = lambda _device_name: math.inf

    from torch.nn.attention.flex_attention import create_block_mask

    with put_off.compilation():
        from torch.distributed.tensor.experimental._context_parallel import (
            _attention as context_parallel,
        )
        from torchtitan.models.common import attention

    from atom.titan.compat import moe

    moe.mend()
    # Whether or not they had been imported before.
    attention._compiled_create_block_mask = create_block_mask
    context_parallel._compiled_create_block_mask = create_block_mask  # type: ignore[assignment]


def keep_freed_memory() -> None:
    """Let this process keep the memory that a step on the CPU frees, for the next step.

    glibc gives large blocks back to the kernel at once, and thousands of page faults a step then
    fetch them again: with it a step of a small model takes about 8 % less processor time. Other C
    libraries have other ways, and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # <malloc.h>; 32 MiB is the most that glibc takes for the first.
    for parameter, value in ((_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**30)):
        mallopt(parameter, value)


def mend_fsdp(model: torch.nn.Module) -> None:
    """Let FSDP reduce gradients over gloo: by a sum, instead of a scaled sum that gloo lacks."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
