"""Select a kernel's launch parameters for a width: from the committed table, or by timing.

``tuning.json`` holds, by kernel and compute capability, rows of ``{"width", "rows", "num_warps",
"stages"}``. A width that is not in it is timed on a GPU, once per process, and guessed elsewhere;
with ``ATOM_TRITON_TUNE=0`` in the environment it is guessed on a GPU, too, which starts sooner.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
import triton
import triton.testing
from triton.runtime.errors import OutOfResources, PTXASError

TABLE = Path(__file__).with_name("tuning.json")


@dataclass(frozen=True)
class Launch:
    """The launch parameters of a kernel.

    ``rows`` is the number of rows in a program's tile, ``num_warps`` the warps of a program.
    ``stages`` is the number of tiles in flight in a kernel with a loop over tiles.
    """

    rows: int
    num_warps: int
    stages: int = 1


_TILE = 8192
"""Elements of a tile that fit a program's registers with some margin."""

ROWS = (1, 2, 4, 8, 16)
"""Candidate rows of a tile."""

_found: dict[tuple[str, int, torch.dtype, int], Launch] = {}


def guess(width: int) -> Launch:
    """Return a launch for rows of ``width`` elements: a full tile, and a warp per 512 elements."""
    block = triton.next_power_of_2(width)
    rows = max(1, min(16, _TILE // 4 // block))
    return Launch(rows=rows, num_warps=max(1, min(16, rows * block // 512)))


def candidates(
    width: int, rows: tuple[int, ...] = ROWS, stages: tuple[int, ...] = (1,)
) -> list[Launch]:
    """Return the candidate launches; ``rows`` and ``stages`` are those that the kernel supports."""
    block = triton.next_power_of_2(width)
    return [
        Launch(number, warps, under_way)
        for number in rows
        if number == 1 or number * block <= _TILE
        for warps in (2, 4, 8, 16)
        for under_way in stages
    ]


def launch(
    kernel: str,
    width: int,
    like: torch.Tensor,
    run: Callable[[Launch], object],
    *,
    rows: tuple[int, ...] = ROWS,
    stages: tuple[int, ...] = (1,),
    overwrites: bool = False,
) -> Launch:
    """Return the launch of ``kernel``.

    Args:
        kernel: its name in the table.
        width: elements of a row.
        like: a tensor on the device, of the dtype.
        run: launches the kernel; may be called repeatedly.
        rows: the candidates.
        stages: the candidates.
        overwrites: whether the kernel overwrites its input, so that it cannot be run for timing.
    """
    if like.device.type != "cuda":
        return guess(width)
    capability = torch.cuda.get_device_capability(like.device)
    key = (kernel, width, like.dtype, 10 * capability[0] + capability[1])
    if key not in _found:
        tries = not overwrites and os.environ.get("ATOM_TRITON_TUNE") != "0"
        _found[key] = listed(kernel, ".".join(map(str, capability)), width) or (
            min(candidates(width, rows, stages), key=partial(seconds, run))
            if tries and not torch.cuda.is_current_stream_capturing()
            else guess(width)
        )
    return _found[key]


@cache
def table() -> dict[str, dict[str, list[dict[str, int]]]]:
    """Return the committed table: kernel -> compute capability -> rows."""
    kernels: dict[str, dict[str, list[dict[str, int]]]] = json.loads(TABLE.read_text())["kernels"]
    return kernels


def listed(kernel: str, capability: str, width: int) -> Launch | None:
    """Return the launch for a width from the committed table, or None."""
    for row in table().get(kernel, {}).get(capability, ()):
        if row["width"] == width:
            return Launch(row["rows"], row["num_warps"], row.get("stages", 1))
    return None


def seconds(run: Callable[[Launch], object], how: Launch) -> float:
    """Return the time of a launch on the GPU; infinity if it exceeds the GPU's resources."""
    try:
        return triton.testing.do_bench(lambda: run(how), return_mode="median") / 1000
    except (OutOfResources, PTXASError):  # too much shared memory or too many registers
        return float("inf")
