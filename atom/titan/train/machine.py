"""Describe the machine of a rank: processor, device, libraries, network."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from atom.run_dir import variables


def facts(device: torch.device) -> dict[str, Any]:
    """Return what a repetition of the run on another machine may differ in."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "network": _network(),
        "variables": variables.numerics(os.environ),
        "device": _cuda(device) if device.type == "cuda" else {"type": device.type},
    }


def _processor() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor()


def _network() -> list[str]:
    """Return the network adapters: the names of InfiniBand's, and of others that are devices."""
    names = [f"infiniband:{path.name}" for path in Path("/sys/class/infiniband").glob("*")]
    names += [path.name for path in Path("/sys/class/net").glob("*") if (path / "device").exists()]
    return sorted(names)


def _cuda(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "type": "cuda",
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": _asked("--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "topology": _asked("topo", "--matrix"),
    }


def _asked(*arguments: str) -> str | None:
    try:
        told = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # With terminal attributes in the table of the topology.
    return re.sub(r"\x1b\[[0-9;]*m", "", told.stdout).strip()
