"""``atom validate``: compute the loss of a run's model on sets of text."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from atom.cli import Parser, named
from atom.cli.scoring import add_layout, as_rank, is_first, on_layout
from atom.data.validation import Texts
from atom.errors import UserError
from atom.io import yaml_data
from atom.io.json_data import dumps
from atom.io.numbers import decimal
from atom.io.printing import clean
from atom.io.terminal import Encodable, Styled
from atom.recipe.run import Run
from atom.recipe.scoring_layout import ScoringLayout
from atom.run_dir import saved, sets
from atom.run_dir.validated import SetResult


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom validate",
        "Compute the loss, perplexity and bits per byte of a run's model on sets of text.",
    )
    parser.add_argument("run", type=Path, help="the run folder, or an export of it")
    parser.add_argument(
        "--set",
        type=_set,
        action="append",
        dest="sets",
        metavar="NAME=DATASET",
        help="a set: the name of a dataset, or '{name: NAME, parameters}'; may be repeated; "
        "default: the run's validation.sets",
    )
    parser.add_argument(
        "--tokens",
        type=_tokens,
        help="tokens of a set to read, rounded up to whole sequences; default: the run's "
        "validation.tokens",
    )
    parser.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    parser.add_average()
    add_layout(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom validate``; return the exit code."""
    options = parser().parse_args(arguments)
    run, chosen = sets.of_run(options.run, named("--set", options.sets or []))
    saved.check(options.run, run, step=options.step, average=options.average)
    on_layout("validate", arguments, options, run, partial(_score, options, run, chosen))
    return 0


def on_rank(arguments: list[str]) -> None:
    """Run ``atom validate`` as one of the ranks of a layout, on a GPU."""
    options = parser().parse_args(arguments)
    run, chosen = sets.of_run(options.run, named("--set", options.sets or []))
    as_rank(options, partial(_score, options, run, chosen))


def _score(
    options: argparse.Namespace,
    run: Run,
    chosen: dict[str, Texts],
    kind: str,
    layout: ScoringLayout,
) -> None:
    from atom.titan.weights.validate import validate

    step, results = validate(
        options.run,
        chosen,
        step=options.step,
        tokens=options.tokens or run.validation.tokens,
        kind=kind,
        average=options.average,
        layout=layout,
    )
    if not is_first():
        return
    if options.json:
        found = {name: result.to_json() for name, result in results.items()}
        print(dumps({"run": str(options.run), "step": step, "sets": found}, indent=2))
        return
    where = "an export" if step is None else f"step {step:,}"
    console = Styled(Encodable(sys.stdout))
    console.print(f"{clean(str(options.run))}, {where}\n", soft_wrap=True)
    console.print(_table(results))


def _table(results: dict[str, SetResult]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("set", overflow="fold")
    for head in ("loss", "perplexity", "bits/byte", "tokens", "bytes"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, found in results.items():
        bits = found.bits_per_byte
        table.add_row(
            clean(name),
            decimal(found.loss, 4),
            decimal(found.perplexity, 2),
            "–" if bits is None else decimal(bits, 4),
            f"{found.tokens:,}",
            "–" if found.bytes is None else f"{found.bytes:,}",
        )
    return table


def _set(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; valid: NAME=DATASET")
    try:
        return name, yaml_data.load(value, f"--set {name}")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 10**12:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid; valid: a whole number from 1")
    return int(text)
