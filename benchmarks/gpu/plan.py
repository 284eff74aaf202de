"""The parts of the measurement in their order, with their commands and their lines in the summary.

Correctness comes before speed: the time of a kernel with wrong results is worth nothing. This
module imports nothing but the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import GRACE, Part, read, read_log

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

KERNELS = ("triton", "liger", "cut_cross_entropy", "quack")
"""The kernels that the bench times, beside the references of their operations."""


@dataclass(frozen=True)
class Where:
    """The Python that runs the parts, their device, and the folder of results."""

    python: str
    device: str
    folder: Path

    @property
    def on_a_gpu(self) -> bool:
        return self.device == "cuda"

    def script(
        self, name: str, file: str, *arguments: str, longest: float
    ) -> Callable[[float], list[str]]:
        """Return the command of a script that writes a file; ``longest`` as of :func:`within`."""

        def command(seconds: float) -> list[str]:
            options = [f"--within={within(seconds, longest):.0f}", f"--write={self.folder / file}"]
            return [self.python, "-P", str(HERE / name), *options, *arguments]

        return command


def within(seconds: float, longest: float) -> float:
    """Return after how many seconds a script starts no more work, so that it ends before it is
    stopped. A piece of work takes ``longest`` seconds at most."""
    return max(seconds - GRACE - longest, seconds / 2)


def parts(where: Where) -> list[Part]:
    """Return every part, in order."""
    device = f"--device={where.device}"
    needs_gpu = None if where.on_a_gpu else "it needs a GPU"
    return [
        Part(
            "parity",
            "Every kernel that fits, as a function, beside its operation written out in float64.",
            share=25,
            command=where.script("parity.py", "parity.json", device, longest=15),
            files=("parity.json",),
            told=lambda folder: read(folder / "parity.json")["summary"],
        ),
        Part(
            "tests",
            "The Triton kernels' own tests: large numbers, strides, no rows, `torch.compile`'s "
            "view of them.",
            share=10,
            command=lambda _seconds: _tests(where),
            told=_tests_told,
        ),
        Part(
            "bench",
            "`atom bench kernels`: times beside the references, the same compiled, and what the "
            "device can do.",
            share=25,
            command=lambda seconds: _bench(where, seconds),
            files=("bench.md", "bench.json"),
            told=_bench_told,
        ),
        Part(
            "one_gpu",
            "A decoder of 1 billion parameters (a tiny one on a CPU), trained on one batch with "
            "other kernels, without torchtitan.",
            share=25,
            command=where.script("decoder.py", "one_gpu.json", device, longest=5),
            files=("one_gpu.json",),
            told=lambda folder: _one_gpu_told(folder, where),
        ),
        Part(
            "training",
            "`benchmarks/one_gpu.py`: the same by `atom train`.",
            share=15,
            command=lambda _seconds: _training(where),
            refusal=lambda: _lacks_torchtitan(where),
            files=("training.md",),
        ),
        Part(
            "tuning",
            "Launches of the Triton kernels, each timed; `tuning.json` takes the place of the "
            "plugin's.",
            share=20,
            command=where.script("tune.py", "tuning.json", longest=30),
            refusal=lambda: needs_gpu,
            files=("tuning.json",),
            told=_tuning_told,
        ),
    ]


def names() -> list[str]:
    """Return the names of the parts, in order."""
    return [part.name for part in parts(Where("", "cuda", Path()))]


# ---------------------------------------------------------------------------- commands


def _tests(where: Where) -> list[str]:
    command = [where.python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf"]
    if where.on_a_gpu:
        return [*command, "-m", "gpu", str(ROOT / "plugins/atom-kernels-triton")]
    command += ["-k", "functions_agree or spill"]
    return [*command, str(ROOT / "plugins/atom-kernels-triton/tests")]


def _bench(where: Where, seconds: float) -> list[str]:
    command = [where.python, "-P", "-m", "atom", "bench", "kernels", f"--device={where.device}"]
    for kernel in KERNELS:
        command.append(f"--kernel={kernel}")
    # A kernel that makes the device fail would spoil all that is timed after it.
    for function in _that_keep_the_device(where.folder):
        command.append(f"--operation={function}")
    if not where.on_a_gpu:
        command += ["--shapes=tiny", "--no-compile", "--seconds=0.01"]
    files = [f"--{kind}={where.folder / f'bench.{end}'}" for kind, end in BENCH.items()]
    return [*command, *files, f"--within={within(seconds, longest=30):.0f}"]


BENCH = {"json": "json", "markdown": "md"}


def _that_keep_the_device(folder: Path) -> list[str]:
    """Return the functions to time if the device failed under others; else none, for all."""
    rows = read(folder / "parity.json").get("rows", [])
    broken = {row["function"] for row in rows if "the device failed" in (row["reason"] or "")}
    if not broken:
        return []
    named = {row["function"] for row in rows if row["kernel"] in KERNELS}
    return sorted(named - broken)


def _training(where: Where) -> list[str]:
    command = [where.python, "-P", str(ROOT / "benchmarks/one_gpu.py")]
    command += [f"--write={where.folder / 'training.md'}"]
    if where.on_a_gpu:
        return [*command, "--kernels=reference,auto,hopper", "--steps=20"]
    small = ["architecture.n_layers=2", "architecture.dim=64", "device=cpu"]
    return [*command, "--kernels=reference,auto", "--steps=3", "--length=64", *small]


def _lacks_torchtitan(where: Where) -> str | None:
    versions = read(where.folder / "device.json").get("versions", {})
    return None if versions.get("torchtitan") else "torchtitan is not installed here"


# ---------------------------------------------------------------------------- the summary


def heading(where: Where, seconds: float) -> list[str]:
    """Return the first lines: which device, when, and the versions."""
    found = read(where.folder / "device.json")
    device, carried = found.get("device", {}), found.get("carried") or {}
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in found["versions"].items())
    commit = carried.get("commit")
    lines = [f"# Kernels on {device.get('name')}", ""]
    if not where.on_a_gpu:
        lines += ["**A rehearsal on a CPU: no number here says how fast anything is.**", ""]
    lines.append(
        f"{found['date']}, at most {seconds:.0f} s. Python {found['python']}, {versions}"
        + (f"; ATOM of commit `{commit}`." if commit else ".")
    )
    return lines


def _tests_told(folder: Path) -> list[str]:
    """Return pytest's last line."""
    found = [line for line in read_log(folder) if re.match(r"\d+ (passed|failed|skipped)", line)]
    return found[-1:]


def _bench_told(folder: Path) -> Iterator[str]:
    rows = read(folder / "bench.json")["rows"]
    timed = sum(bool(row["passes"]) for row in rows)
    yield f"{timed} of {len(rows)} rows were timed; `bench.md` has them, and why the others not."
    yield ""
    for row in rows:
        if row["failed"]:
            where = f"`{row['function']}`/`{row['kernel']}`, {row['dtype']}, {row['shape']}"
            yield f"- {where}: {row['reason']}"


def _one_gpu_told(folder: Path, where: Where) -> Iterator[str]:
    yield "| kernels | tokens/s | over reference | peak memory | largest difference of a loss |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for row in read(folder / "one_gpu.json")["rows"]:
        if "losses" not in row:
            yield f"| {row['kernels']} | {row['reason']} | - | - | - |"
            continue
        off = f"{row['largest_difference']:.1g}" if "largest_difference" in row else "-"
        speed = over = memory = "-"
        if where.on_a_gpu:
            speed = f"{row['tokens_per_second']:,.0f}"
            over = f"{row['speedup']:.2f}" if "speedup" in row else "-"
            memory = f"{row['peak_memory'] / 2**30:.1f} GiB"
        yield f"| {row['kernels']} | {speed} | {over} | {memory} | {off} |"


def _tuning_told(folder: Path) -> Iterator[str]:
    yield "| kernel | width | launch now | fastest | time that it saves |"
    yield "| --- | ---: | --- | --- | ---: |"
    for row in read(folder / "tuning.json")["timed"]:
        now, best = (_launch(row[name]) for name in ("listed", "best"))
        before, after = row["listed_seconds"], row["best_seconds"]
        gain = f"{100 * (1 - after / before):.0f} %" if before else "it did not fit"
        yield f"| {row['kernel']} | {row['width']} | {now} | {best} | {gain} |"


def _launch(how: dict[str, Any]) -> str:
    return f"{how['rows']} rows, {how['num_warps']} warps, {how['stages']} stages"
