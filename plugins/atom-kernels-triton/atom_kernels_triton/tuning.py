"""How a kernel is launched for a width: from the committed table, or from trying.

``tuning.json`` holds, by kernel and compute capability, rows of ``{"width", "rows", "num_warps",
"stages"}``. A width that is not in it is tried on a GPU, once a process, and guessed elsewhere;
with ``ATOM_TRITON_TUNE=0`` in the environment it is guessed there, too, which starts sooner.
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
    """``rows`` are those of one program's tile, ``num_warps`` the warps of one program. ``stages``
    are the tiles that are under way at once in a kernel that goes from tile to tile."""

    rows: int
    num_warps: int
    stages: int = 1


_TILE = 8192
"""Elements of a tile that fit the registers of a program with some room."""

ROWS = (1, 2, 4, 8, 16)
"""Rows of a tile that are tried."""

_found: dict[tuple[str, int, torch.dtype, int], Launch] = {}


def guess(width: int) -> Launch:
    """Return a launch for rows of ``width`` elements: a full tile, and a warp for each 512."""
    block = triton.next_power_of_2(width)
    rows = max(1, min(16, _TILE // 4 // block))
    return Launch(rows=rows, num_warps=max(1, min(16, rows * block // 512)))


def candidates(
    width: int, rows: tuple[int, ...] = ROWS, stages: tuple[int, ...] = (1,)
) -> list[Launch]:
    """Return the launches that are tried; ``rows`` and ``stages`` are those that the kernel can
    have."""
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
    """Return how to launch ``kernel``.

    Args:
        kernel: its name in the table.
        width: elements of a row.
        like: a tensor on the device, of the dtype.
        run: launches the kernel, as often as wished.
        rows: those to try.
        stages: those to try.
        overwrites: whether the kernel overwrites its input, so that a run cannot try it.
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
    """Return the launch of the committed table for a width, or None."""
    for row in table().get(kernel, {}).get(capability, ()):
        if row["width"] == width:
            return Launch(row["rows"], row["num_warps"], row.get("stages", 1))
    return None


def seconds(run: Callable[[Launch], object], how: Launch) -> float:
    """Return how long a launch takes on the GPU; infinity for one that it has no room for."""
    try:
        return triton.testing.do_bench(lambda: run(how), return_mode="median") / 1000
    except (OutOfResources, PTXASError):  # more shared memory or registers than there are
        return float("inf")
