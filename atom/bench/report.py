"""Write a benchmark's results as JSON and as Markdown."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from atom.bench.ceiling import COPIED, MATRIX, Ceiling
from atom.bench.measure import BACKWARD, BOTH, COMPILED, FORWARD, Pass, Row
from atom.bench.subjects import REFERENCE
from atom.bench.timing import timer
from atom.plan.device import DeviceDescription

_PASSES = (FORWARD, BACKWARD, BOTH)
_HEADER = (
    *("operation", "dtype", "shape", "kernel", "pass", "time", "quartiles", "reached"),
    *("of the ceiling", "over reference", "over compiled", "peak MiB"),
)


@dataclass(frozen=True)
class Report:
    """The results of a benchmark and where they were measured.

    Attributes:
        command: the command that produced the report.
        date: ISO 8601.
        device: ``kind``, ``name``, ``capability``, and the number of a CPU's cores.
        versions: package -> version, None if it is not installed.
        timer: the timing method, in words.
        ceiling: the device's ceilings.
        rows: one for each kernel, function, size and dtype.
    """

    command: str
    date: str
    device: dict[str, Any]
    versions: dict[str, str | None]
    timer: str
    ceiling: Ceiling
    rows: tuple[Row, ...]

    def data(self) -> dict[str, Any]:
        """Return the JSON file's content: times in seconds, rates per second, memory in bytes."""
        return asdict(self)


def made(command: str, device: DeviceDescription, ceiling: Ceiling, rows: Iterable[Row]) -> Report:
    """Return the report on ``rows``, with a description of this machine."""
    rows = _by_function(rows)
    described: dict[str, Any] = {
        "kind": device.kind,
        "name": processor() if device.kind == "cpu" else device.name,
        "capability": device.capability,
    }
    if device.kind == "cpu":
        from atom.titan.compat.device import cores

        described["cores"] = cores()
    packages = ("atom-train", "torch", "triton", "torchtitan")
    return Report(
        command=command,
        date=date.today().isoformat(),
        device=described,
        versions={
            "python": platform.python_version(),
            **{package: _version(package) for package in packages},
            **{row.package: row.version for row in rows},
        },
        timer=timer(device.kind),
        ceiling=ceiling,
        rows=rows,
    )


def _by_function(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Group the rows by function; they are timed size by size."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dtype, row.function), []).append(row)
    return tuple(row for group in groups.values() for row in group)


def markdown(report: Report) -> str:
    """Return the report as a page of Markdown."""
    return "\n".join([*_head(report), *_table(report), *_not_timed(report), *_notes(report)]) + "\n"


def _head(report: Report) -> Iterator[str]:
    device = report.device
    name = device["name"]
    if device["capability"]:
        name += f", compute capability {'.'.join(map(str, device['capability']))}"
    if device["kind"] == "cpu":
        name += f", {device['cores']} cores"
    yield "# Kernels" + (" on a CPU" if device["kind"] == "cpu" else "")
    yield ""
    if device["kind"] == "cpu":
        yield "**Timed on a CPU, not on a GPU.** These times say nothing about a GPU."
        yield ""
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in report.versions.items())
    yield f"`{report.command}`, {report.date}. {name}. {versions}. Timer: {report.timer}."
    yield ""
    kind = device["kind"]
    products = ", ".join(
        f"{rate(flops, 'FLOP/s')} in {dtype}" for dtype, flops in report.ceiling.flops.items()
    )
    yield (
        f"The ceilings, measured in the same call: {MATRIX[kind]}³ matrix product {products}; "
        f"copy of {COPIED[kind] // 2**20} MiB {rate(report.ceiling.bandwidth, 'B/s')}, read and "
        "written."
    )
    yield ""


def _table(report: Report) -> Iterator[str]:
    yield f"| {' | '.join(_HEADER)} |"
    yield f"|{' --- |' * 5}{' ---: |' * (len(_HEADER) - 5)}"
    for row in report.rows:
        for name in _PASSES:
            if name in row.passes:
                yield f"| {' | '.join(_cells(row, name, row.passes[name]))} |"
    yield ""


def _cells(row: Row, name: str, one: Pass) -> Iterator[str]:
    yield from (row.function, row.dtype, row.shape, row.kernel, name, _time(one.seconds))
    quartiles = one.low is not None and one.high is not None
    yield f"{_time(one.low)} to {_time(one.high)}" if quartiles else "-"  # type: ignore[arg-type]
    if one.bound == "compute":
        yield rate(one.flops_per_second, "FLOP/s")
    else:
        yield rate(one.bytes_per_second, "B/s")
    percent = 100 * one.fraction
    yield f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %"
    for other in (REFERENCE, COMPILED):
        yield f"{one.speedup[other]:.2f}×" if other in one.speedup else "-"
    whole = name == (BOTH if BOTH in row.passes else FORWARD) and row.peak_memory is not None
    yield f"{row.peak_memory / 2**20:.0f}" if whole else "-"  # type: ignore[operator]


def _not_timed(report: Report) -> Iterator[str]:
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in report.rows:
        if row.reason is not None:
            where = f"{row.dtype} {row.shape}".strip()
            found.setdefault((row.function, row.kernel, row.reason), []).append(where)
    if not found:
        return
    yield "Not timed:"
    yield ""
    yield "| operation | kernel | why | where |"
    yield "| --- | --- | --- | --- |"
    for (function, kernel, reason), places in found.items():
        places = list(dict.fromkeys(places))
        where = places[0] if len(places) == 1 else f"{len(places)} sizes"
        yield f"| {function} | {kernel} | {reason.replace('|', '/')} | {where} |"
    yield ""


def _notes(report: Report) -> Iterator[str]:
    yield (
        "Times are medians. *both* is forward and backward; *backward* is the difference of the "
        "medians of *both* and *forward*. What is reached counts the FLOPs that the operation "
        "needs and the bytes that it must move at least (`atom/titan/contracts/work.py`). *of the "
        "ceiling* is the time that the ceilings allow for that, divided by the time taken. *peak* "
        "is what the passes allocate at the most, beside inputs"
        + ("; not measured on a CPU." if report.device["kind"] == "cpu" else ".")
    )
    if any(row.launch == "launches" for row in report.rows):
        names = sorted({f"{r.function}/{r.kernel}" for r in report.rows if r.launch == "launches"})
        yield ""
        yield f"Could not be captured in a CUDA graph, so launches count: {', '.join(names)}."


def _time(seconds: float) -> str:
    for limit, unit in ((1e-3, "µs"), (1.0, "ms")):
        if seconds < limit:
            return f"{seconds / limit * 1e3:.3g} {unit}"
    return f"{seconds:.3g} s"


def rate(value: float, unit: str) -> str:
    """Return a rate in readable form: ``3.01 TB/s``."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _version(package: str) -> str | None:
    if package == "torch" and "torch" in sys.modules:
        return str(sys.modules["torch"].__version__)  # includes the CUDA version it is built for
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Return the processor's model name, as the operating system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
