"""``atom plan``: plan a run of any size, or a budget; fit a scaling law, or a device file."""

from __future__ import annotations

from collections.abc import Callable

from atom.cli import Parser, plan_budget, plan_calibrate, plan_fit, plan_run
from atom.errors import UserError

SUBCOMMANDS: dict[str, Callable[[], Parser]] = {
    "fit": plan_fit.parser,
    "calibrate": plan_calibrate.parser,
}
"""Name -> the parser of its arguments, for completion."""


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    return plan_budget.parser()


def main(arguments: list[str]) -> int:
    """Run ``atom plan``; return the exit code."""
    if arguments[:1] == ["fit"]:
        return plan_fit.run(plan_fit.parser().parse_args(arguments[1:]))
    if arguments[:1] == ["calibrate"]:
        return plan_calibrate.run(plan_calibrate.parser().parse_args(arguments[1:]))
    options = parser().parse_intermixed_args(arguments)
    if any(word.startswith("budget=") for word in options.overrides):
        for name, given in (("--html", options.html), ("--multirun", options.multirun)):
            if given:
                raise UserError(
                    f"{name} is for the plan of a run, and a budget has none", valid="--json"
                )
        return plan_budget.run(options)
    of_budget = [w for w in options.overrides if w.startswith(("law=", "rule="))]
    if options.ladder or of_budget or not options.overrides:
        raise UserError(
            "atom plan: a budget is missing",
            valid="budget=1e23, `atom plan fit`, `atom plan calibrate`, or overrides of "
            "`atom train`, such as architecture=llama3_8b world_size=64 device=h100",
        )
    return plan_run.run(options)
