"""``atom report``: write a report page of a run."""

from __future__ import annotations

from pathlib import Path

from atom.cli import Parser
from atom.errors import UserError
from atom.io.files import write_given, write_text
from atom.watch import record, report, sweep, sweep_report


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom report",
        "Write a report of a run: one HTML page with curves, settings, layout, kernels, data and "
        "environment, which needs no network. Of a sweep: its ranking and the settings that "
        "matter.",
    )
    parser.add_argument("run", type=Path, help="the run folder, or the folder of a sweep")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file to write; report.html in the run folder by default",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom report``; return the exit code."""
    options = parser().parse_args(arguments)
    if sweep.is_sweep(options.run):
        page = sweep_report.page(sweep.load(options.run))
    else:
        page = report.page(record.load(options.run))
    place = options.out or options.run / "report.html"
    try:
        (write_given if options.out else write_text)(place, page)
    except OSError as error:
        raise UserError(
            f"{place} cannot be written: {error.strerror}", valid="--out FILE"
        ) from None
    print(place)
    return 0
