"""Implement for the CPU what torchtitan expects of a device module."""

from __future__ import annotations

import math
import os
import resource
import types
from typing import Any

DEVICE_TYPE = "cpu"


class _CpuModule(types.ModuleType):
    """``torch.cpu`` with the functions that torchtitan calls. Memory is that of the process."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch.cpu, name)

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0  # torch.cpu returns "cpu", but a barrier needs an index

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
        """Do nothing: the kernel keeps the peak of a process and cannot reset it."""

    def empty_cache(self) -> None:
        """Do nothing: there is no cache."""


MODULE = _CpuModule("atom.titan.compat.cpu.module")


def unknown_peak_flops(_device_name: str) -> float:
    """Return an infinite peak: torchtitan's MFU becomes zero, and ATOM does not report it."""
    return math.inf
