"""Check that a node is fit for ranks before they start, and print one line.

``python -m atom.launch.health [--gpus N] [--disk GIB] FOLDER …`` prints ``atom-health NODE ok``, or
the problem. It imports no torch, so a healthy node answers within a second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_QUERY = ("index", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total")
_MOST_USED_MIB = 2048
"""Above this, another process uses the GPU; an idle GPU uses less."""

_MOST_SKEW_SECONDS = 10.0
"""Tolerated clock difference between a node and the file server; the order of events depends on it.
"""

_GIB = 2**30


def main(arguments: list[str]) -> int:
    """Print one line about this node; return 0 in every case."""
    parser = argparse.ArgumentParser("python -m atom.launch.health", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="must be there, with free space")
    parser.add_argument("--gpus", type=int, default=0, help="that there must be")
    parser.add_argument("--disk", type=float, default=1.0, help="GiB free in each folder")
    parser.add_argument("--node", help="ignored")
    options = parser.parse_args(arguments)
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    found = "; ".join([*_disks(options.folders, options.disk), *_clock(), *_gpus(options.gpus)])
    print(f"atom-health {name} {f'bad: {found}' if found else 'ok'}", flush=True)
    return 0


def _disks(folders: list[Path], wanted: float) -> Iterator[str]:
    for folder in folders:
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".atom-health-") as probe:
                skew = abs(os.fstat(probe.fileno()).st_mtime - time.time())
            free = shutil.disk_usage(folder).free / _GIB
        except OSError as error:
            yield f"{folder} cannot be written to ({error.strerror})"
            continue
        if free < wanted:
            yield f"{free:.1f} GiB free in {folder}, {wanted:g} wanted"
        if skew > _MOST_SKEW_SECONDS:
            yield f"its clock is {skew:.0f} s off that of {folder}"


def _clock() -> Iterator[str]:
    if time.time() < Path(__file__).stat().st_mtime - 86400:
        yield "its clock is behind the files of ATOM by more than a day"


def _gpus(wanted: int) -> Iterator[str]:
    if not wanted:
        return
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        yield f"nvidia-smi fails ({' '.join(str(error).split())})"
        return
    yield from judged(done.stdout, wanted)


def judged(table: str, wanted: int) -> Iterator[str]:
    """Yield the problems of the GPUs.

    Args:
        table: output of nvidia-smi, one line per GPU: index, total memory and used memory (MiB),
            and uncorrected ECC errors.
        wanted: number of GPUs.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line]
    if len(rows) < wanted:
        yield f"{len(rows)} GPUs, {wanted} wanted"
    totals = {row[1] for row in rows}
    if len(totals) > 1:
        yield f"GPUs of unequal memory: {', '.join(sorted(totals))} MiB"
    for index, _, used, errors in rows:
        if used.isdecimal() and int(used) > _MOST_USED_MIB:
            yield f"GPU {index} has {used} MiB in use"
        if errors.isdecimal() and int(errors):
            yield f"GPU {index} has {errors} uncorrected memory errors"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
