"""``atom bench kernels``: measure the installed kernels on the current device."""

from __future__ import annotations

import math
import shlex
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from atom.cli import Parser
from atom.errors import UserError
from atom.io import files
from atom.io.json_data import dumps
from atom.registry.host import Host

if TYPE_CHECKING:
    from atom.bench.measure import Row
    from atom.bench.report import Report
    from atom.bench.subjects import Subject

_DTYPES = ("float32", "bfloat16", "float16")
_SHAPES = ("tiny", "small", "real")


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    return Parser(
        "atom bench",
        "Run benchmarks. `atom bench kernels` times the installed kernels on this device.",
    )


def kernels_parser() -> Parser:
    """Return the parser of the arguments of ``atom bench kernels``."""
    parser = Parser(
        "atom bench kernels",
        "Time each installed kernel, forward and backward, and compare it with the reference of "
        "its operation, the compiled reference and the limits of the device. Print a table in "
        "Markdown.",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="a GPU if there is one"
    )
    parser.add_argument(
        "--operation",
        action="append",
        default=[],
        metavar="NAME",
        help="an operation or a part of one, such as silu_mul; may be repeated; all by default",
    )
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help="a kernel to time besides the references; may be repeated; all by default",
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=_DTYPES,
        help="may be repeated; bfloat16 on a GPU, float32 on a CPU by default",
    )
    parser.add_argument(
        "--shapes",
        choices=_SHAPES,
        help="real (of models of 8 and 70 billion parameters) on a GPU, small on a CPU by default",
    )
    parser.add_argument(
        "--seconds",
        type=_time(most=60),
        default=0.2,
        help="seconds for which each pass is repeated, approximately; 0.2 by default",
    )
    parser.add_argument(
        "--within",
        type=_time(),
        default=math.inf,
        metavar="SECONDS",
        help="start no further kernel after this many seconds; no limit by default",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="do not time the compiled references"
    )
    for name, what in (("json", "write the results as JSON"), ("markdown", "the table")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {what}")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw a roofline")
    return parser


SUBCOMMANDS = {"kernels": kernels_parser}
"""Name -> the parser of its arguments, for completion."""


def main(arguments: list[str]) -> int:
    """Run ``atom bench``; return the exit code: 1 if a kernel failed that should have run."""
    if arguments[:1] != ["kernels"]:
        parser().parse_args(arguments)
        raise UserError("atom bench: needs the name of a benchmark", valid="kernels")
    options = kernels_parser().parse_args(arguments[1:])
    for place in (options.json, options.markdown, options.picture):
        _check(place)
    if options.picture is not None and options.picture.suffix != ".svg":
        raise UserError(f"--picture {options.picture} is not an SVG file", valid="FILE.svg")
    from atom.bench import subjects, timing

    found = subjects.chosen(Host.load(), options.operation, options.kernel)
    command = f"atom bench {shlex.join(arguments)}"
    from atom.bench import report, roofline

    # Output of compilers and kernels does not belong in the table.
    with redirect_stdout(sys.stderr), timing.denormals_flushed():
        for result in _measured(options, found, command):
            # Save after each measurement, so that no result is lost if this process is killed.
            _keep(options.json, dumps(result.data(), indent=2) + "\n")
            _keep(options.markdown, report.markdown(result))
    from atom.watch.markup import svg_file

    print(report.markdown(result), end="")
    _write(options.json, dumps(result.data(), indent=2) + "\n")
    _write(options.markdown, report.markdown(result))
    if options.picture is not None:
        _write(options.picture, svg_file(roofline.picture(result)))
    return 1 if any(row.failed for row in result.rows) else 0


def _measured(options: Namespace, found: list[Subject], command: str) -> Iterator[Report]:
    """Yield an empty report, then a report of all rows so far after each row."""
    from atom.bench import ceiling, report, subjects
    from atom.bench.measure import Bench
    from atom.titan.compat import device

    until = time.monotonic() + options.within
    kind = device.pick(options.device)
    described = device.describe(kind)
    dtypes = options.dtype or ["bfloat16" if kind == "cuda" else "float32"]
    shapes = subjects.SHAPES[options.shapes or ("real" if kind == "cuda" else "small")]
    limits = ceiling.measured(kind, dtypes, options.seconds)
    bench = Bench(described, limits, options.seconds, not options.no_compile, until)
    rows: list[Row] = []
    yield report.made(command, described, limits, rows)
    for row in _told(bench.rows(found, shapes, dtypes)):
        rows.append(row)
        yield report.made(command, described, limits, rows)


def _told(rows: Iterable[Row]) -> Iterator[Row]:
    """Print each row as it is measured."""
    for row in rows:
        words = f"{row.function} {row.dtype} {row.shape}: {row.kernel}"
        print(f"atom: {words}" + (f": {row.reason}" if row.reason else ""), file=sys.stderr)
        yield row


def _time(*, most: float = math.inf) -> Callable[[str], float]:
    """Return a parser of a duration in seconds."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most:
            limit = "" if most == math.inf else f", at most {most:g}"
            raise ArgumentTypeError(f"{text!r} is not a number of seconds; valid: above 0{limit}")
        return value

    return read


def _check(place: Path | None) -> None:
    """Refuse an output file that is not writable, before measuring for an hour."""
    if place is None:
        return
    if place.is_dir():
        raise UserError(f"{place} cannot be written: it is a folder")
    if not place.parent.is_dir():
        raise UserError(f"{place} cannot be written: there is no folder {place.parent}")


def _keep(place: Path | None, text: str) -> None:
    """Write an intermediate result to a file; a pipe is written only once, at the end."""
    if place is not None and (place.is_file() or not place.exists()):
        _write(place, text)


def _write(place: Path | None, text: str) -> None:
    if place is None:
        return
    try:
        files.write_given(place, text)
    except OSError as error:
        raise UserError(f"{place} cannot be written: {error.strerror}") from None
