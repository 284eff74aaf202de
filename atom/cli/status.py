"""``atom status``: show the status of a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from atom.cli import Parser
from atom.io.json_data import dumps
from atom.io.numbers import clock
from atom.io.printing import clean
from atom.run_dir import status


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser("atom status", "Show the status of a run, read from its folder.")
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom status``; return exit code 0 for any state."""
    options = parser().parse_args(arguments)
    found = status.status(options.run)
    if options.json:
        print(dumps(asdict(found), indent=2))
        return 0
    for label, words in lines(found):
        print(f"{label:<11}{words}")
    return 0


def lines(found: status.Status) -> list[tuple[str, str]]:
    """Return labels and values; unknown values are left out."""
    by = f", process {found.pid} on {found.host}" if found.pid else ""
    reason = f": {found.reason}" if found.reason else ""
    total = f" of {found.steps:,}" if found.steps else ""
    # A killed process may have done one more step without recording it.
    least = "at least " if found.state == "interrupted" else ""
    shown = [("state", f"{found.state}{by}{reason}"), ("step", f"{least}{found.step:,}{total}")]
    if found.loss is not None:
        at = "" if found.loss_step == found.step else f" (step {found.loss_step:,})"
        shown.append(("loss", f"{found.loss:.4f}{at}"))
    if found.tokens_seen is not None:
        shown.append(("tokens", f"{least}{found.tokens_seen:,} seen"))
    if found.step_seconds is not None and found.tokens_per_second is not None:
        pace = f"{found.step_seconds:.2f} s/step, {found.tokens_per_second:,.0f} tokens/s"
        shown.append(("pace", pace))
    if found.left is not None:
        shown.append(("left", clock(found.left)))
    again = f", {found.steps_lost:,} steps repeated" if found.steps_lost else ""
    lost = f", {clock(found.lost)} lost" if found.lost else ""
    shown.append(("restarts", f"{found.restarts:,}{again}{lost}"))
    if found.goodput is not None and found.wall is not None:
        spent = f"{clock(found.productive)} of {clock(found.wall)} spent on steps that count"
        shown.append(("goodput", f"{found.goodput:.0%} ({spent})"))
    saved = "none" if found.checkpoint is None else f"step {found.checkpoint:,}"
    shown.append(("checkpoint", saved))
    if found.evaluation is not None:
        shown.append(("evaluated", clean(found.evaluation)))
    return shown
