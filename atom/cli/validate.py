"""``atom validate``: compute the loss of a run's model on sets of text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from atom.cli import Parser, named
from atom.errors import UserError
from atom.io import yaml_data
from atom.io.json_data import dumps
from atom.io.numbers import decimal
from atom.io.printing import clean
from atom.io.terminal import Encodable, Styled
from atom.run_dir import sets
from atom.run_dir.validated import SetResult


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom validate",
        "Compute the loss, perplexity and bits per byte of a run's model on sets of text, in one "
        "process.",
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
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom validate``; return the exit code."""
    options = parser().parse_args(arguments)
    run, chosen = sets.of_run(options.run, named("--set", options.sets or []))
    from atom.titan.boot import boot
    from atom.titan.compat import device

    kind = device.pick(options.device)
    boot(kind)
    from atom.titan.weights.validate import validate

    tokens = options.tokens or run.validation.tokens
    step, results = validate(
        options.run,
        chosen,
        step=options.step,
        tokens=tokens,
        kind=kind,
        average=options.average,
    )
    if options.json:
        found = {name: result.to_json() for name, result in results.items()}
        print(dumps({"run": str(options.run), "step": step, "sets": found}, indent=2))
        return 0
    where = "an export" if step is None else f"step {step:,}"
    console = Styled(Encodable(sys.stdout))
    console.print(f"{clean(str(options.run))}, {where}\n", soft_wrap=True)
    console.print(_table(results))
    return 0


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
