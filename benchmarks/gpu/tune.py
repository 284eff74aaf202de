"""Time the launches of atom-kernels-triton, and write the table of the fastest.

    python benchmarks/gpu/tune.py --within 120 --write tuning.json

The file takes the place of the plugin's ``tuning.json``: what was not timed is as it is there. Its
``timed`` has, for each row, the seconds of the launch that the plugin has now and of the fastest.
It is written after each row, those of the most frequent widths first. Needs no torchtitan.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from atom.io.files import write_json
from atom_kernels_triton import cross_entropy, feed_forward, rms_norm, tuning
from atom_kernels_triton.tuning import Launch

MODULES = (rms_norm, feed_forward, cross_entropy)
WIDTHS = (4096, 8192, 2048, 5120, 7168)
"""Of models of 8, 70 and 1 billion parameters, and others."""

ROWS, HIDDEN, VOCABULARY = 8192, 14336, 128256
DTYPE = torch.bfloat16

Seconds = Callable[[Callable[[Launch], object], Launch], float]


@dataclass
class Table:
    """The launches that were timed, on a device with a name and a compute capability. ``seconds``
    times one; ``keep`` is called with the table after each row.

    Of a row, ``listed`` is the launch that the plugin has now, ``best`` the fastest.
    """

    device: str
    capability: str
    keep: Callable[[Table], None]
    seconds: Seconds = tuning.seconds
    timed: list[dict[str, Any]] = field(default_factory=list)

    def launch(
        self,
        kernel: str,
        width: int,
        _like: torch.Tensor,
        run: Callable[[Launch], object],
        *,
        rows: tuple[int, ...] = tuning.ROWS,
        stages: tuple[int, ...] = (1,),
        **_: object,
    ) -> Launch:
        """Time every launch and return the fastest: in the place of the plugin's ``launch``."""
        for row in self.timed:
            if (row["kernel"], row["width"]) == (kernel, width):
                return Launch(**row["best"])
        now = tuning.listed(kernel, self.capability, width) or tuning.guess(width)
        tried = dict.fromkeys([now, *tuning.candidates(width, rows, stages)])
        found = {how: self.seconds(run, how) for how in tried}
        best = min(found, key=lambda how: found[how])
        row = {"kernel": kernel, "width": width, "tried": len(found)}
        row |= {"listed": asdict(now), "listed_seconds": _finite(found[now])}
        row |= {"best": asdict(best), "best_seconds": _finite(found[best])}
        print(f"{kernel} {width}: {row}", flush=True)
        if math.isfinite(found[best]):
            self.timed.append(row)
            self.keep(self)
        return best

    def data(self) -> dict[str, Any]:
        """Return the plugin's table with the rows that were timed in the place of its own."""
        kernels = json.loads(tuning.TABLE.read_text())["kernels"]
        for row in self.timed:
            rows = kernels.setdefault(row["kernel"], {}).setdefault(self.capability, [])
            rows[:] = [other for other in rows if other["width"] != row["width"]]
            rows.append({"width": row["width"], **row["best"]})
            rows.sort(key=lambda each: each["width"])
        about = (
            "Launches by kernel, compute capability and width of a row. Those under `timed` were "
            f"measured on {self.device}, {date.today()}, torch {torch.__version__}, triton "
            f"{triton.__version__}, {DTYPE}; the others were not."
        )
        return {"about": about, "kernels": kernels, "timed": self.timed}


def norm(width: int, rows: int, device: str) -> None:
    x = torch.randn(rows, width, device=device, dtype=DTYPE, requires_grad=True)
    weight = torch.ones(width, device=device, dtype=DTYPE, requires_grad=True)
    rms_norm.rms_norm(x, weight, 1e-5).backward(torch.randn_like(x))


def gate(width: int, rows: int, device: str) -> None:
    x, y = (
        torch.randn(rows, width, device=device, dtype=DTYPE, requires_grad=True) for _ in range(2)
    )
    feed_forward.silu_mul(x, y).backward(torch.randn_like(x))


def loss(vocabulary: int, rows: int, device: str) -> None:
    logits = torch.randn(rows, vocabulary, device=device, dtype=DTYPE, requires_grad=True)
    labels = torch.randint(vocabulary, (rows,), device=device)
    cross_entropy.cross_entropy(logits, labels)


def cases(device: str) -> list[Callable[[], None]]:
    """Return what launches the kernels, the most frequent first."""
    first, *others = (partial(norm, width, ROWS, device) for width in WIDTHS)
    wide = partial(gate, HIDDEN, ROWS, device), partial(loss, VOCABULARY, ROWS // 4, device)
    return [first, *wide, *others]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--within", type=float, default=math.inf, help="seconds")
    parser.add_argument("--write", type=Path, required=True)
    options = parser.parse_args()
    until = time.monotonic() + options.within
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    table = Table(
        torch.cuda.get_device_name(),
        capability,
        keep=lambda table: write_json(options.write, table.data()),
    )
    for module in MODULES:
        module.launch = table.launch  # type: ignore[attr-defined]
    failed = False
    for case in cases("cuda"):
        if time.monotonic() >= until:
            print("the time was over before the rest", flush=True)
            break
        try:
            case()
        except Exception as error:
            failed = True
            print(f"failed: {type(error).__name__}: {error}", flush=True)
    return 1 if failed or not table.timed else 0


if __name__ == "__main__":
    sys.exit(main())
