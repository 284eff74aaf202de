"""``atom runs``: print a table of the runs under a folder."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from atom.cli import Parser
from atom.errors import UserError
from atom.io.json_data import dumps
from atom.io.numbers import clock, decimal
from atom.io.printing import clean
from atom.io.terminal import Encodable, Styled
from atom.watch.runs import Found, Runs

LIVE_SECONDS = 2.0

_STYLES = {
    "running": "green",
    "finished": "",
    "stopped": "yellow",
    "failed": "bold red",
    "interrupted": "red",
    "new": "dim",
    "unreadable": "bold red",
}


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser("atom runs", "List the runs under a folder, with the status of each.")
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("outputs"),
        help="the folder; outputs by default",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print a JSON array, for programs")
    how.add_argument("--live", action="store_true", help="redraw the table until Ctrl-C")
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom runs``; return exit code 0 for any states."""
    options = parser().parse_args(arguments)
    runs = Runs(options.folder)
    if options.json:
        print(dumps([_json(found) for found in runs.look()], indent=2))
        return 0
    target = Encodable(sys.stdout)
    console = Styled(target)
    if options.live:
        if not console.is_terminal:
            raise UserError("--live draws on a terminal; valid here: no option, or --json")
        _draw(console, runs, options.folder)
        return 0
    found = runs.look()
    if not found:
        print(f"no runs under {clean(str(options.folder))}", file=sys.stderr)
        return 0
    # A pipe has no width; the reader decides where to cut lines.
    width = console.width if console.is_terminal else 10_000
    console.print(table(found, options.folder), width=width, crop=False)
    return 0


def table(found: Sequence[Found], below: Path) -> Table:
    """Return the runs as a table, with folders relative to ``below``."""
    shown = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in ("state", "step", "loss", "tokens/s", "goodput", "age"):
        shown.add_column(head, justify="left" if head == "state" else "right", no_wrap=True)
    shown.add_column("folder", overflow="fold")
    for one in found:
        state = one.status.state if one.status else "unreadable"
        folder = Text(clean(str(_from(below, one.folder))))
        reason = one.status.reason if one.status else one.problem
        if reason and state in ("failed", "unreadable"):
            folder.append(f"\n{clean(reason)}", "dim")
        shown.add_row(Text(state, _STYLES[state]), *_cells(one), folder)
    return shown


def _cells(one: Found) -> list[str]:
    found = one.status
    if found is None:
        return [""] * 5
    return [
        f"{found.step:,}" + (f"/{found.steps:,}" if found.steps else ""),
        "" if found.loss is None else decimal(found.loss, 4),
        "" if found.tokens_per_second is None else f"{found.tokens_per_second:,.0f}",
        "" if found.goodput is None else f"{found.goodput:.0%}",
        "" if found.started is None else clock(_age(found.started)),
    ]


def _draw(console: Console, runs: Runs, below: Path) -> None:
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(table(runs.look(), below), refresh=True)
                time.sleep(LIVE_SECONDS)
        except KeyboardInterrupt:
            pass


def _json(one: Found) -> dict:
    told = {"folder": str(one.folder), "problem": one.problem}
    values = asdict(one.status) if one.status else {"state": "unreadable"}
    return told | values


def _from(below: Path, folder: Path) -> Path:
    return folder if folder == below else folder.relative_to(below)


def _age(started: str) -> float:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()
    except (ValueError, TypeError):
        return math.nan
