"""``atom compare``: show how the settings and results of runs differ."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from atom.cli import Parser, compare_sweep
from atom.errors import UserError, shown
from atom.io.files import write_given
from atom.io.json_data import dumps
from atom.io.numbers import decimal, sparkline
from atom.io.printing import clean
from atom.io.terminal import Encodable, Styled
from atom.run_dir import chosen, evals
from atom.watch import compare, sweep
from atom.watch.compare import Compared
from atom.watch.markup import svg_file

_SHOW: dict[str, Callable[[Any], str]] = {
    "loss": lambda value: decimal(value, 4),
    "s/step": lambda value: decimal(value, 2),
    "memory GiB": lambda value: f"{value:.1f}",
    "goodput": lambda value: f"{value:.0%}",
    "state": str,
}


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom compare",
        "Show the settings in which runs differ, their results, and their curves; of a sweep, the "
        "best run and the settings that matter.",
    )
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="two or more run folders, or the folder of a sweep, which is ranked",
    )
    parser.add_argument(
        "--objective",
        metavar="VALUE",
        help="the value that ranks the runs of a sweep; default: their sweep.objective",
    )
    parser.add_argument(
        "--direction",
        choices=("minimize", "maximize"),
        help="whether the lowest or the highest value is the best; default: their sweep.direction",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.svg", help="draw all curves into this picture"
    )
    parser.add_argument(
        "--show",
        action="append",
        default=[],
        metavar="NAME",
        help="also compare this number of metrics.jsonl, such as callbacks.norms.gradient/layers.0 "
        "(of gradient/*, the highest); it can be given several times. Those of metrics.show are "
        "compared anyway",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom compare``; return the exit code."""
    options = parser().parse_args(arguments)
    of_sweep = len(options.runs) == 1 and sweep.is_sweep(options.runs[0])
    if len(options.runs) < 2 and not of_sweep:
        if not options.runs[0].is_dir():
            raise UserError(f"{options.runs[0]}: there is no such folder", valid="one of a sweep")
        raise UserError(
            f"{options.runs[0]} alone cannot be compared",
            valid="two or more run folders, or the folder of a sweep",
        )
    for option in ("objective", "direction"):
        if not of_sweep and getattr(options, option) is not None:
            raise UserError(f"--{option} is for the folder of a sweep")
    if of_sweep and options.show:
        raise UserError("--show is for two or more run folders", valid="--objective for a sweep")
    if options.out is not None and options.out.suffix != ".svg":
        raise UserError(f"--out {options.out} is not an SVG file", valid="FILE.svg")
    if of_sweep:
        compare_sweep.show(
            sweep.load(options.runs[0], options.objective, options.direction),
            out=options.out,
            as_json=options.json,
        )
        return 0
    runs = compare.load(options.runs, options.show)
    if options.out is not None:
        drawn = svg_file(compare.picture(runs))
        write_given(options.out, drawn)
    if options.json:
        print(dumps(_json(runs), indent=2))
        return 0
    target = Encodable(sys.stdout)
    console = Styled(target)
    width = console.width if console.is_terminal else 10_000
    differing = compare.differing(runs)
    if differing:
        settings = _table("setting", runs)
        for key, values in differing.items():
            settings.add_row(clean(key), *(clean(shown(value)) for value in values))
        console.print(settings, width=width, crop=False)
    else:
        console.print("no setting differs")
    console.print()
    numbers = _table("", runs)
    found = [run.numbers() for run in runs]
    further = {chosen.short(name) for run in runs for name in run.chosen}
    further |= {name for run in runs for name in evals.by_name(run.evaluations)}
    for name in dict.fromkeys(name for one in found for name in one):
        show = chosen.text if name in further else partial(_number, name)
        row = [one.get(name) for one in found]
        numbers.add_row(clean(name), *("–" if value is None else show(value) for value in row))
    numbers.add_row("data", *(words or "–" for words in compare.data(runs)))
    ascii_only = not target.encoding.lower().startswith("utf")
    columns = max(12, min(40, (console.width - 14) // len(runs) - 2))
    numbers.add_row(
        "loss curve",
        *(
            Text(sparkline([row.loss for row in run.rows], columns, ascii_only=ascii_only), "cyan")
            for run in runs
        ),
    )
    console.print(numbers, width=width, crop=False)
    if options.out is not None:
        console.print(f"\ncurves     {clean(str(options.out))}", soft_wrap=True)
    return 0


def _table(head: str, runs: Sequence[Compared]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(head, style="dim", no_wrap=True)
    for run in runs:
        table.add_column(clean(run.name), overflow="fold")
    return table


def _number(name: str, value: Any) -> str:
    if name.endswith((" loss", " bits/byte")):
        return decimal(value, 4)
    if name.endswith(" data"):
        return clean(str(value)[:8])
    return clean(_SHOW.get(name, lambda number: f"{number:,.0f}")(value))


def _json(runs: Sequence[Compared]) -> dict[str, Any]:
    return {
        "runs": [
            {"run": str(run.folder), **run.numbers(), "data": data}
            for run, data in zip(runs, compare.data(runs), strict=True)
        ],
        "settings": compare.differing(runs),
    }
