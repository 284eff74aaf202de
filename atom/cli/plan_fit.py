"""``atom plan fit``: fit a scaling law to finished runs, and extrapolate it."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from atom.cli import Parser
from atom.io.files import write_given
from atom.io.json_data import dumps
from atom.io.numbers import human
from atom.io.printing import clean
from atom.io.terminal import Encodable, Styled
from atom.plan.law_fit import CONSTANTS, Fit, Point, fit, groups

_BUDGETS = (10.0, 100.0, 1000.0)
"""Budgets shown by default, as multiples of the largest run's FLOPs."""


def parser() -> Parser:
    """Return the parser of the arguments of ``atom plan fit``."""
    parser = Parser(
        "atom plan fit",
        "Fit the scaling law E + A / N^alpha + B / D^beta to finished runs, and show what it "
        "predicts for larger budgets, with 95 % confidence bands.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument(
        "--loss",
        metavar="SET",
        help="validation set of the loss, or loss: the mean training loss of the last 5 %% of "
        "steps; default: the validation set of all runs if there is one",
    )
    parser.add_argument(
        "--budget",
        type=_flops,
        action="append",
        metavar="FLOPS",
        help="a budget to extrapolate to; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, metavar="LAW.yaml", help="write the law, for `atom plan law=LAW.yaml`"
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, help="seed of the bootstrap samples; default: 0"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    return parser


def run(options: argparse.Namespace) -> int:
    """Fit, print and write the law; return the exit code."""
    from atom.watch import law_points

    points, loss = law_points.points(options.runs, options.loss)
    alternatives = groups(points)
    found = fit([best for best, *_ in alternatives], seed=options.seed)
    budgets = options.budget or [found.largest.flops * factor for factor in _BUDGETS]
    if options.out is not None:
        write_given(options.out, _law(found))
    if options.json:
        print(dumps(_json(found, alternatives, loss, budgets), indent=2))
        return 0
    _print(Styled(Encodable(sys.stdout)), found, alternatives, loss, budgets)
    return 0


def _law(found: Fit) -> str:
    law = found.law
    constants = {"form": "loss", "source": law.source}
    return yaml.safe_dump(
        {**constants, **{name: getattr(law, name) for name in CONSTANTS}}, sort_keys=False
    )


def _json(
    found: Fit, alternatives: list[list[Point]], loss: str, budgets: list[float]
) -> dict[str, Any]:
    return {
        "loss": loss,
        "runs": [dataclasses.asdict(point) for point in found.points],
        "left_out": [dataclasses.asdict(point) for _, *rest in alternatives for point in rest],
        "constants": {
            name: {"value": getattr(found.law, name), "band": found.band(name)}
            for name in CONSTANTS
        },
        "samples": len(found.draws),
        "samples_without_a_law": found.failed,
        "rms_error": found.error,
        "held_out": {
            "run": found.largest.name,
            "loss": found.largest.loss,
            "predicted": found.held_out,
        },
        "budgets": [
            {**dataclasses.asdict(found.optimum(flops)), "bands": found.optimum_bands(flops)}
            for flops in budgets
        ],
    }


def _print(
    console: Console,
    found: Fit,
    alternatives: list[list[Point]],
    loss: str,
    budgets: list[float],
) -> None:
    what = "training loss" if loss == "loss" else f"loss of {clean(loss)}"
    console.print(f"{len(found.points)} runs, {what}; residuals {found.error:.2%}")
    for lowest, *rest in alternatives:
        if rest:
            others = ", ".join(f"{clean(point.name)} {point.loss:.4f}" for point in rest)
            console.print(
                f"{clean(lowest.name)} has the lowest loss, {lowest.loss:.4f}, of {len(rest) + 1} "
                f"runs of its size and tokens; left out: {others}",
                soft_wrap=True,
            )
    if found.failed:
        console.print(
            f"{found.failed:,} of {found.failed + len(found.draws):,} bootstrap samples determine "
            "no law; the bands are those of the others",
            soft_wrap=True,
        )
    console.print()
    table = _table("constant", "value", "95 % band")
    for name in CONSTANTS:
        low, high = found.band(name)
        table.add_row(name, f"{getattr(found.law, name):.4g}", f"{low:.4g} to {high:.4g}")
    console.print(table)
    if found.held_out is not None:
        largest = found.largest
        off = math.log(found.held_out / largest.loss)
        console.print(
            f"\nThe other runs predict {found.held_out:.4f} for {clean(largest.name)}, the largest "
            f"with {largest.loss:.4f}: {off:+.2%}",
            soft_wrap=True,
        )
    console.print()
    table = _table("FLOPs", "parameters", "tokens", "loss")
    for flops in budgets:
        best, bands = found.optimum(flops), found.optimum_bands(flops)
        assert best.loss is not None
        low, high = bands["loss"]
        table.add_row(
            f"{flops:.2g}",
            _with_band(best.parameters, bands["parameters"]),
            _with_band(best.tokens, bands["tokens"]),
            f"{best.loss:.3f} ({low:.3f} to {high:.3f})",
        )
    console.print(table)


def _with_band(value: float, band: tuple[float, float]) -> str:
    return f"{human(value)} ({human(band[0])} to {human(band[1])})"


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    return table


def _flops(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (0 < value < 1e40):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of FLOPs; valid: above 0")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; valid: a whole number from 0")
    return int(text)
