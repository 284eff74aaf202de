"""Report the compiled code of atom-kernels-triton for an H100, without a GPU.

    python benchmarks/triton_compiled.py [--write]

Each kernel is compiled for compute capability 9.0 at the sizes of real models, in bfloat16, with
the launch parameters of ``tuning.json``. The page lists registers, spills, shared memory, resident
programs per multiprocessor, and the widths of memory accesses. It explains the choice of a launch;
only a GPU can measure its speed. ``--write`` writes it to
``benchmarks/results/triton_compiled.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch
import triton

from atom.testing.compiler import HOPPER, Compiled, compiling
from atom_kernels_triton import cross_entropy, feed_forward, rms_norm, rope, tuning

RESULTS = Path(__file__).with_name("results") / "triton_compiled.md"
DTYPE = torch.bfloat16
ROWS = 4096

# A multiprocessor of an H100 (CUDA C++ Programming Guide, compute capability 9.0).
REGISTERS, THREADS, PROGRAMS, SHARED = 65536, 2048, 32, 227 * 1024


def made(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=DTYPE, requires_grad=True)


def norms(width: int) -> None:
    rms_norm.rms_norm(made(ROWS, width), made(width), 1e-5).sum().backward()


def fused_norms(width: int) -> None:
    y, total = rms_norm.add_rms_norm(made(ROWS, width), made(ROWS, width), made(width), 1e-5)
    (y + total).sum().backward()


def gates(width: int) -> None:
    feed_forward.silu_mul(made(ROWS, width), made(ROWS, width)).sum().backward()


def rotations(halves: bool) -> None:
    cache = torch.ones(64, 256) if halves else torch.ones(64, 64, dtype=torch.complex64)
    q, k = made(1, 64, 32, 128), made(1, 64, 8, 128)
    rope.rope(q, k, cache, torch.arange(64)[None], halves=halves)


def losses(vocabulary: int) -> None:
    logits = torch.empty(64, vocabulary, dtype=DTYPE)
    labels = torch.zeros(64, dtype=torch.long)
    cross_entropy._cross_entropy_(logits, labels, torch.ones(()), True)


CASES: list[tuple[str, Callable[[], None]]] = [
    *((f"rms_norm, {n}", lambda n=n: norms(n)) for n in (2048, 4096, 5120, 7168, 8192)),
    ("add_rms_norm, 4096", lambda: fused_norms(4096)),
    ("add_rms_norm, 8192", lambda: fused_norms(8192)),
    ("silu_mul, 14336", lambda: gates(14336)),
    ("rope, 32 + 8 heads of 128", lambda: rotations(halves=False)),
    ("rope_halves, 32 + 8 heads of 128", lambda: rotations(halves=True)),
    ("cross_entropy, 128256", lambda: losses(128256)),
]


def from_table(kernel: str, width: int, *_: object, **__: object) -> tuning.Launch:
    return tuning.listed(kernel, ".".join(map(str, HOPPER)), width) or tuning.guess(width)


def programs(kernel: Compiled) -> int:
    """Return the number of resident programs per multiprocessor."""
    threads = 32 * kernel.num_warps
    registers = (
        threads * -(-kernel.registers // 8) * 8
    )  # registers are allocated in multiples of 256 per warp
    shared = kernel.shared + 1024  # reserved by the system
    return min(REGISTERS // registers, THREADS // threads, PROGRAMS, SHARED // shared)


def found() -> Iterator[tuple[str, Compiled]]:
    """Yield each compiled kernel of each case."""
    for module in (rms_norm, feed_forward, cross_entropy):
        module.launch = from_table  # type: ignore[attr-defined]
    # The number of programs on a GPU; on a CPU the function returns 2.
    rms_norm._programs = lambda _device, _tile: 132  # type: ignore[assignment]
    for name, run in CASES:
        with compiling(HOPPER) as every:
            run()
        yield from ((name, kernel) for kernel in every)


def page() -> str:
    lines = [
        "# The Triton kernels, compiled for an H100",
        "",
        f"`python benchmarks/triton_compiled.py`, {date.today()}, triton {triton.__version__}, no "
        "GPU: compute capability 9.0, bfloat16, launched as `tuning.json` says. **Nothing was "
        "timed.** *resident* are the programs that a multiprocessor holds at once; *accesses* are "
        "those of the code to global memory, by bytes of a thread.",
        "",
        "| case | kernel | warps | registers | spilled | shared | resident | threads | accesses |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, kernel in found():
        resident = programs(kernel)
        accesses = ", ".join(f"{size} B × {n}" for size, n in kernel.accesses.items())
        lines.append(
            f"| {name} | `{kernel.name.strip('_')}` | {kernel.num_warps} | {kernel.registers} "
            f"| {kernel.spilled} B | {kernel.shared:,} B | {resident} "
            f"| {32 * kernel.num_warps * resident} | {accesses} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.name}")
    options = parser.parse_args()
    text = page()
    print(text)
    if options.write:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
