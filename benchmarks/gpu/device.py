"""Write a description of the device, and the versions of all packages that take part.

python benchmarks/gpu/device.py --device cuda --write device.json
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from atom.bench.report import processor
from atom.errors import UserError
from atom.io import json_data
from atom.io.files import write_json
from atom.titan.compat import device

PACKAGES = (
    *("atom-train", "atom-kernels-torch", "atom-kernels-triton", "atom-kernels-adapters"),
    *("torch", "triton", "torchtitan", "liger-kernel", "cut-cross-entropy", "quack-kernels"),
)
ASKED = "name,driver_version,vbios_version,power.limit,clocks.max.sm,clocks.max.mem,temperature.gpu"


def version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # with the CUDA that it is built for
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def described(kind: str) -> dict[str, Any]:
    found = device.describe(kind)
    if kind == "cpu":
        return {"kind": kind, "name": processor(), "cores": device.cores()}
    properties = torch.cuda.get_device_properties()
    return {
        "kind": kind,
        "name": found.name,
        "capability": ".".join(map(str, found.capability or ())),
        "memory": found.memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "nvidia-smi": dict(zip(ASKED.split(","), smi(), strict=False)),
    }


def smi() -> list[str]:
    """Return the answers of ``nvidia-smi``; none if the machine lacks it."""
    command = ["nvidia-smi", f"--query-gpu={ASKED}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [each.strip() for each in answer.stdout.strip().split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--carried", type=Path, help="what the wheels were made of, a JSON file")
    parser.add_argument("--write", type=Path, required=True)
    options = parser.parse_args()
    try:
        kind = device.pick(options.device)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    carried = options.carried is not None and options.carried.is_file()
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": described(kind),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {package: version(package) for package in PACKAGES},
        "carried": json_data.read(options.carried) if carried else None,
    }
    write_json(options.write, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
