"""``atom data at``: show which documents a step of a run trains on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.table import Table

from atom.cli import Parser
from atom.errors import one_line
from atom.io.json_data import dumps
from atom.io.terminal import Encodable, Styled


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom data at",
        "Show which documents a step of a run trains on. They are computed from the run's "
        "declaration and, where there is one, the newest checkpoint before the step.",
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--step", type=int, required=True, help="the step, from 1")
    parser.add_argument(
        "--sequence", type=int, help="a sequence of the global batch, from 0; default: all"
    )
    parser.add_argument("--from-start", action="store_true", help="compute from the first step on")
    parser.add_argument("--json", action="store_true", help="print a JSON object, for programs")
    return parser


def run(options: argparse.Namespace) -> int:
    """Print the documents of a step; return the exit code.

    Raises:
        UserError: there is no such run, step or sequence, or the data has changed.
    """
    from atom.titan.boot import boot

    boot("cpu")
    from atom.titan.data_at import data_at

    sequences = None if options.sequence is None else [options.sequence]
    found = data_at(options.run, options.step, sequences, from_start=options.from_start)
    if options.json:
        lanes = {str(each.number): [part.span for part in each.parts] for each in found}
        print(dumps({"step": options.step, "lanes": lanes}))
        return 0
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in ("sequence", "epoch", "tokens"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("document", overflow="fold")
    for sequence in found:
        for part in sequence.parts:
            tokens = f"{part.begin:,}–{part.begin + part.count:,}"
            name = one_line(part.document.id)
            table.add_row(str(sequence.number), str(part.epoch), tokens, name)
        padding = sequence.length - sum(part.count for part in sequence.parts)
        if padding:
            table.add_row(str(sequence.number), "", f"{padding:,}", "padding")
    Styled(Encodable(sys.stdout)).print(table)
    return 0
