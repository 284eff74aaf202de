"""``atom report``: write a report page of a run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from atom.cli import Parser
from atom.errors import UserError
from atom.io.files import write_given, write_text
from atom.io.process import call
from atom.plan import device
from atom.plan.outlook import Outlook, Prices, outlook
from atom.watch import record, report, sweep, sweep_report
from atom.watch.record import Record


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
        "--device",
        metavar="NAME|FILE",
        help="show what `atom plan` expects of the run on this device beside what was measured: "
        "h100, or a file of `atom plan calibrate`; of profiled runs on a CPU by default",
    )
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
    if options.device is not None:
        if sweep.is_sweep(options.run):
            raise UserError("a sweep has no plan", key="--device", value=options.device)
        device.named(options.device, key="--device")
    if sweep.is_sweep(options.run):
        page = sweep_report.page(sweep.load(options.run))
    else:
        page = report.page(planned(record.load(options.run), options.device))
    place = options.out or options.run / "report.html"
    try:
        (write_given if options.out else write_text)(place, page)
    except OSError as error:
        raise UserError(
            f"{place} cannot be written: {error.strerror}", valid="--out FILE"
        ) from None
    print(place)
    return 0


def planned(found: Record, name: str | None) -> Record:
    """Return ``found`` with what was to be expected of it on the device ``name``.

    Without a name, only runs on a CPU with profiled steps are planned: it takes seconds, because
    it imports torch, and the GPU of another machine is unknown.
    """
    resolved = found.run.resolved
    if name is None and not (resolved and resolved.device == "cpu" and found.profile):
        return found
    try:
        return replace(found, planned=call(partial(_expected, found, name)))
    except UserError as error:
        if name is not None:
            raise
        return replace(found, problems=[*found.problems, f"its plan ({error.sentence()})"])


def _expected(found: Record, name: str | None) -> Outlook:
    from atom.titan.planning.of_run import estimate_of_run

    target = None if name is None else device.named(name)
    known = estimate_of_run(found.run, target)
    steps = max(found.status.step, 1)
    ahead = outlook(known.estimate, known.model, known.device, steps, Prices())
    ahead.told.update(device=known.device.name or known.device.kind)
    ahead.told.update(ranks=known.estimate.layout.ranks)
    return ahead
