"""``atom plan``: divide a budget by a scaling law, and fit the law to finished runs."""

from __future__ import annotations

from collections.abc import Callable

from atom.cli import Parser, plan_budget, plan_fit
from atom.errors import UserError

SUBCOMMANDS: dict[str, Callable[[], Parser]] = {"fit": plan_fit.parser}
"""Name -> the parser of its arguments, for completion."""


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    return plan_budget.parser()


def main(arguments: list[str]) -> int:
    """Run ``atom plan``; return the exit code."""
    if arguments[:1] == ["fit"]:
        return plan_fit.run(plan_fit.parser().parse_args(arguments[1:]))
    options = parser().parse_intermixed_args(arguments)
    if not any(word.startswith("budget=") for word in options.overrides):
        raise UserError("atom plan: a budget is missing", valid="budget=1e23, or `atom plan fit`")
    return plan_budget.run(options)
