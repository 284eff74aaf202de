"""Compare every kernel that fits with its operation written out in float64, by value.

    python benchmarks/gpu/parity.py --device cuda --within 100 --write parity.json

A row of the file is a kernel's function at one size in one dtype: the tensor that is farthest off,
its error and what is tolerated, or why it was not compared. The file is written after each row.
Kernels are compared as the functions that they declare, so this needs no torchtitan.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from atom.bench.subjects import Subject, chosen, situation
from atom.io import json_data
from atom.io.files import write_json
from atom.kernels.choose import misfit
from atom.plan.device import DeviceDescription
from atom.registry.host import Host, resolve
from atom.titan.compat import device
from atom.titan.contracts import comparing
from atom.titan.contracts.functions import FUNCTIONS
from atom.titan.contracts.sizes import EIGHT_BILLION, ODD, REGULAR, Sizes

REAL = replace(EIGHT_BILLION, batch=1, length=512)
"""The widths of a model of 8 billion parameters, on few tokens: the formula computes in float64."""

SIZES = {
    "cuda": (REAL, REGULAR[0], *ODD[1:], replace(REAL, n_heads=64, hidden_dim=28672), ODD[0]),
    "cpu": (REGULAR[0], ODD[1]),
}
DTYPES = ("bfloat16", "float32", "float16")

BROKE = "the device failed: "
"""The first words of a row's reason if the process cannot use the device any more."""


@dataclass(frozen=True)
class Row:
    """A kernel's function at one size in one dtype. ``reason`` says why there is no ``error``;
    ``failed`` that the kernel is off by more than is tolerated, or cannot run where it should."""

    function: str
    kernel: str
    package: str
    version: str
    dtype: str
    sizes: str
    tensor: str | None = None
    error: float | None = None
    tolerance: float | None = None
    reason: str | None = None
    failed: bool = False


def pairs(kind: str, functions: list[str]) -> Iterator[tuple[Subject, Sizes, str]]:
    """Yield the comparisons in order: all kernels at one size, then all at the next."""
    subjects = [s for s in chosen(Host.load(), functions, []) if s.reference is not None]
    for sizes in SIZES[kind]:
        for dtype in DTYPES:
            for subject in subjects:
                if dtype in subject.kernel.tolerance:
                    yield subject, sizes, dtype


def blank(subject: Subject, sizes: Sizes, dtype: str) -> Row:
    kernel, plugin = subject.kernel, subject.component.plugin
    names = (subject.function, kernel.name, plugin.package, plugin.version)
    return Row(*names, dtype, str(sizes))


def compared(row: Row, subject: Subject, sizes: Sizes, described: DeviceDescription) -> Row:
    """Compare a kernel; return the row with its error, or with the reason why there is none."""
    kernel, kind = subject.kernel, described.kind
    if reason := misfit(kernel, situation(described, row.dtype, sizes)):
        return replace(row, reason=reason)
    assert subject.reference is not None
    contract = FUNCTIONS[subject.function]
    try:
        function = resolve(subject.reference, subject.component)
        tensor, error = comparing.worst(function, contract, sizes, row.dtype, kind, maker(kind))
    except torch.OutOfMemoryError:
        return replace(row, reason="out of memory")
    except Exception as raised:
        words = " ".join(f"{type(raised).__name__}: {raised}".split())[:300]
        return replace(row, reason=(BROKE if is_broken(kind) else "") + words, failed=True)
    if not math.isfinite(error):
        return replace(row, tensor=tensor, reason=f"its error is {error}", failed=True)
    allowed = kernel.tolerance[row.dtype]
    return replace(row, tensor=tensor, error=error, tolerance=allowed, failed=error > allowed)


def maker(kind: str) -> Callable[..., torch.Tensor]:
    """Return a function of a shape that makes normal numbers in float64, the same in each run."""
    generator = torch.Generator(kind).manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64, device=kind)


def is_broken(kind: str) -> bool:
    """Return whether the device refuses this process, as it does after an illegal access."""
    if kind == "cuda":
        try:
            torch.zeros(1, device=kind).add_(1).item()
        except RuntimeError:
            return True
    return False


def summary(rows: list[Row], left: int) -> list[str]:
    """Return the lines of the summary: failures, and the largest errors."""
    by_value = [row for row in rows if row.error is not None]
    agree = sum(not row.failed for row in by_value)
    lines = [f"{agree} of {len(by_value)} comparisons agree with the operation in float64."]
    if left:
        lines.append(f"The time was over before {left} others.")
    failed: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.failed:
            failed.setdefault((row.function, row.kernel), []).append(row)
    lines += [""] if failed else []
    for (function, kernel), these in failed.items():
        first = these[0]
        words = first.reason or (
            f"{first.tensor} is off by {first.error:.2g}, tolerance {first.tolerance:.2g}"
        )
        more = f", and {len(these) - 1} more" if len(these) > 1 else ""
        lines.append(f"- `{function}`/`{kernel}`, {first.dtype}, {first.sizes}: {words}{more}")
    return [*lines, "", *_worst(by_value)]


def _worst(rows: list[Row]) -> Iterator[str]:
    """Yield a table of each kernel's largest error in each dtype."""
    worst: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        errors = worst.setdefault((row.function, row.kernel), {})
        if row.dtype not in errors or (row.error or 0) > (errors[row.dtype].error or 0):
            errors[row.dtype] = row
    yield f"| function | kernel | largest error in {' | in '.join(DTYPES)} |"
    yield f"| --- | --- |{' ---: |' * len(DTYPES)}"
    for (function, kernel), errors in sorted(worst.items()):
        cells = (f"{errors[name].error:.1e}" if name in errors else "-" for name in DTYPES)
        yield f"| `{function}` | `{kernel}` | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--within", type=float, default=math.inf, help="seconds")
    parser.add_argument("--function", action="append", default=[], help="all by default")
    parser.add_argument("--write", type=Path, required=True)
    parser.add_argument("--goes-on", action="store_true", help="after the rows of the file")
    options = parser.parse_args()
    until = time.monotonic() + options.within
    described = device.describe(device.pick(options.device))
    rows = []
    if options.goes_on:
        rows = [Row(**row) for row in json_data.read(options.write)["rows"]]
    every = list(pairs(described.kind, options.function))
    for subject, sizes, dtype in every[len(rows) :]:
        if time.monotonic() >= until:
            break
        row = blank(subject, sizes, dtype)
        # Before it is begun: if it never ends, the log says which it was.
        print(row.function, row.kernel, row.dtype, row.sizes, end=": ", flush=True)
        if any(_broke(other) and _same(other, row) for other in rows):
            row = replace(row, reason="the device had failed under it at another size")
        else:
            row = compared(row, subject, sizes, described)
        rows.append(row)
        print(row.reason if row.error is None else f"{row.error:.2g}", flush=True)
        left = len(every) - len(rows)
        content = {"rows": [asdict(row) for row in rows], "not_reached": left}
        content["torchtitan_imported"] = "torchtitan" in sys.modules
        write_json(options.write, content | {"summary": summary(rows, left)})
        if _broke(row):
            rest = ["--goes-on", f"--within={until - time.monotonic()}"]
            os.execv(sys.executable, [sys.executable, "-P", *sys.argv, *rest])
    return 1 if any(row.failed for row in rows) else 0


def _broke(row: Row) -> bool:
    return (row.reason or "").startswith(BROKE)


def _same(one: Row, other: Row) -> bool:
    return (one.function, one.kernel) == (other.function, other.kernel)


if __name__ == "__main__":
    sys.exit(main())
