"""How a kernel is launched for a width: from the committed table, or from trying.

``tuning.json`` holds, by kernel and compute capability, rows of ``{"width", "rows", "num_warps"}``.
A width that is not in it is tried on a GPU, once a process, and guessed elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton
import triton.testing

TABLE = Path(__file__).with_name("tuning.json")


@dataclass(frozen=True)
class Launch:
    """``rows`` are those of one program's tile, ``num_warps`` the warps of one program."""

    rows: int
    num_warps: int


_TILE = 8192
"""Elements of a tile that fit the registers of a program with some room."""

_found: dict[tuple[str, int, torch.dtype, int], Launch] = {}


def guess(width: int) -> Launch:
    """Return a launch for rows of ``width`` elements: a full tile, and a warp for each 512."""
    block = triton.next_power_of_2(width)
    rows = max(1, min(16, _TILE // 4 // block))
    return Launch(rows=rows, num_warps=max(1, min(16, rows * block // 512)))


def candidates(width: int) -> list[Launch]:
    """Return the launches that are tried."""
    block = triton.next_power_of_2(width)
    return [
        Launch(rows, warps)
        for rows in (1, 2, 4, 8, 16)
        if rows == 1 or rows * block <= _TILE
        for warps in (2, 4, 8, 16)
    ]


def launch(
    kernel: str, width: int, like: torch.Tensor, run: Callable[[Launch], object] | None = None
) -> Launch:
    """Return how to launch ``kernel``.

    Args:
        kernel: its name in the table.
        width: elements of a row.
        like: a tensor on the device, of the dtype.
        run: launches the kernel, as often as wished; None for one that overwrites its input.
    """
    if like.device.type != "cuda":
        return guess(width)
    capability = torch.cuda.get_device_capability(like.device)
    key = (kernel, width, like.dtype, 10 * capability[0] + capability[1])
    if key not in _found:
        _found[key] = _listed(kernel, ".".join(map(str, capability)), width) or (
            guess(width)
            if run is None or torch.cuda.is_current_stream_capturing()
            else min(candidates(width), key=lambda each: triton.testing.do_bench(lambda: run(each)))
        )
    return _found[key]


@cache
def table() -> dict[str, dict[str, list[dict[str, int]]]]:
    """Return the committed table: kernel -> compute capability -> rows."""
    kernels: dict[str, dict[str, list[dict[str, int]]]] = json.loads(TABLE.read_text())["kernels"]
    return kernels


def _listed(kernel: str, capability: str, width: int) -> Launch | None:
    for row in table().get(kernel, {}).get(capability, ()):
        if row["width"] == width:
            return Launch(row["rows"], row["num_warps"])
    return None
