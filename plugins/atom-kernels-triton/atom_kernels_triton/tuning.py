"""How a kernel is launched for a width: from the committed table, or from trying.

``tuning.json`` holds, by kernel and compute capability, rows of ``{"width", "rows", "num_warps",
"stages"}``. A width that is not in it is tried on a GPU, once a process, and guessed elsewhere.
"""

from __future__ import annotations

import json
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
    """``rows`` are those of one program's tile, ``num_warps`` the warps of one program. ``stages``
    are the tiles that are under way at once in a kernel that goes from tile to tile."""

    rows: int
    num_warps: int
    stages: int = 1


_TILE = 8192
"""Elements of a tile that fit the registers of a program with some room."""

_found: dict[tuple[str, int, torch.dtype, int], Launch] = {}


def guess(width: int) -> Launch:
    """Return a launch for rows of ``width`` elements: a full tile, and a warp for each 512."""
    block = triton.next_power_of_2(width)
    rows = max(1, min(16, _TILE // 4 // block))
    return Launch(rows=rows, num_warps=max(1, min(16, rows * block // 512)))


def candidates(width: int, stages: tuple[int, ...] = (1,)) -> list[Launch]:
    """Return the launches that are tried; ``stages`` are those that the kernel can have."""
    block = triton.next_power_of_2(width)
    return [
        Launch(rows, warps, number)
        for rows in (1, 2, 4, 8, 16)
        if rows == 1 or rows * block <= _TILE
        for warps in (2, 4, 8, 16)
        for number in stages
    ]


def launch(
    kernel: str,
    width: int,
    like: torch.Tensor,
    run: Callable[[Launch], object] | None = None,
    *,
    stages: tuple[int, ...] = (1,),
) -> Launch:
    """Return how to launch ``kernel``.

    Args:
        kernel: its name in the table.
        width: elements of a row.
        like: a tensor on the device, of the dtype.
        run: launches the kernel, as often as wished; None for one that overwrites its input.
        stages: those to try.
    """
    if like.device.type != "cuda":
        return guess(width)
    capability = torch.cuda.get_device_capability(like.device)
    key = (kernel, width, like.dtype, 10 * capability[0] + capability[1])
    if key not in _found:
        _found[key] = listed(kernel, ".".join(map(str, capability)), width) or (
            guess(width)
            if run is None or torch.cuda.is_current_stream_capturing()
            else min(candidates(width, stages), key=partial(_seconds, run))
        )
    return _found[key]


@cache
def table() -> dict[str, dict[str, list[dict[str, int]]]]:
    """Return the committed table: kernel -> compute capability -> rows."""
    kernels: dict[str, dict[str, list[dict[str, int]]]] = json.loads(TABLE.read_text())["kernels"]
    return kernels


def listed(kernel: str, capability: str, width: int) -> Launch | None:
    """Return the launch of the committed table for a width, or None."""
    for row in table().get(kernel, {}).get(capability, ()):
        if row["width"] == width:
            return Launch(row["rows"], row["num_warps"], row.get("stages", 1))
    return None


def _seconds(run: Callable[[Launch], object], how: Launch) -> float:
    try:
        return triton.testing.do_bench(lambda: run(how))
    except (OutOfResources, PTXASError):  # more shared memory or registers than there are
        return float("inf")
