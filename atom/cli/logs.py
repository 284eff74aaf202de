"""``atom logs``: show the logs of the launcher and the ranks of a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from atom.cli import Parser
from atom.errors import UserError
from atom.io.printing import clean, escaped
from atom.io.terminal import Encodable, Styled
from atom.run_dir import claim
from atom.watch.log_lines import ALL, LAUNCHER, Line, Logs

LEVELS = ("debug", "info", "warning", "error", "critical")

_POLL_SECONDS = 0.3
_STYLES = {"debug": "dim", "warning": "yellow", "error": "bold red", "critical": "bold red"}


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom logs",
        "Show the logs of a run, ordered by time: those of its launcher and rank 0, or of the "
        "ranks given.",
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument(
        "--rank",
        action="append",
        metavar="N",
        help=f"a rank's number, {LAUNCHER}, or {ALL}; may be given several times",
    )
    parser.add_argument(
        "--level", choices=LEVELS, default="debug", help="omit lines below this level"
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="follow the logs until the job ends"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--json", action="store_true", help="print the original JSON lines, for programs"
    )
    what.add_argument(
        "--printed",
        action="store_true",
        help="show the printed output of ranks and their libraries, such as stacks of hung ranks, "
        "instead of their logs",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Run ``atom logs``; return the exit code."""
    options = parser().parse_args(arguments)
    sources = options.rank or (["0"] if options.printed else [LAUNCHER, "0"])
    for source in sources:
        if source not in (LAUNCHER, ALL) and not source.isdecimal():
            raise UserError(f"--rank {source} is no rank", valid=f"a number, {LAUNCHER}, {ALL}")
    if not options.rank and not (options.run / "logs" / f"{LAUNCHER}.jsonl").exists():
        sources = ["0"]  # ranks started by torchrun or Slurm have no ATOM launcher
    logs = Logs(
        options.run, [str(int(s)) if s.isdecimal() else s for s in sources], printed=options.printed
    )
    show = _raw if options.json else _Readable(sources != ["0"])
    least = LEVELS.index(options.level)
    try:
        while True:
            # Check this before reading, so that the last lines before the end are still shown.
            goes_on = options.follow and claim.holder(options.run) is not None
            show(line for line in logs.lines() if _level(line) >= least)
            if not goes_on:
                return 0
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        if options.follow:
            return 0
        raise
    finally:
        logs.close()


def _raw(lines: Iterable[Line]) -> None:
    sys.stdout.flush()
    for line in lines:
        # The same JSON, safe for a terminal.
        text = escaped(line.raw.decode(errors="backslashreplace").rstrip("\r"))
        os.write(sys.stdout.fileno(), f"{text}\n".encode())


class _Readable:
    """A printer of log lines for people.

    Args:
        named: show the source of each line.
    """

    def __init__(self, named: bool) -> None:
        self._console = Styled(Encodable(sys.stdout))
        self._named = named
        self._day = ""

    def __call__(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self._console.print(self._text(line), soft_wrap=True)
        sys.stdout.flush()

    def _text(self, line: Line) -> Text:
        source = f"{line.source:>{len(LAUNCHER)}} " if self._named else ""
        if not line.fields:
            return Text.assemble((source, "cyan"), clean(line.raw.decode(errors="replace"), "\t"))
        level = str(line.fields.get("level", ""))
        style = _STYLES.get(level, "")
        day, clock = _local(line.time)
        found = Text()
        if day != self._day:
            found.append(f"{day}\n", "dim")
            self._day = day
        found.append(f"{clock} ", "dim")
        found.append(source, "cyan")
        found.append(f"{clean(level):<8} ", style)
        found.append(_indented(str(line.fields.get("event", ""))), style)
        for name, value in line.others.items():
            found.append(f"  {clean(name)}=", "dim")
            found.append(_value(value))
        for name in ("stack", "exception"):
            if name in line.fields:
                found.append(f"\n    {_indented(str(line.fields[name]))}", "dim")
        return found


def _level(line: Line) -> int:
    level = line.fields.get("level")
    return LEVELS.index(level) if level in LEVELS else len(LEVELS)


def _local(time: str) -> tuple[str, str]:
    """Return date and local time of a time stamp; an invalid one is returned unchanged."""
    try:
        here = datetime.fromisoformat(time).astimezone()
    except (ValueError, OverflowError):
        return "", clean(time)
    return f"{here:%Y-%m-%d}", f"{here:%H:%M:%S}"


def _indented(text: str) -> str:
    return clean(text.rstrip(), keep="\n\t").replace("\n", "\n    ")


def _value(value: Any) -> str:
    text = clean(value if isinstance(value, str) else repr(value))
    return repr(text) if isinstance(value, str) and (" " in text or not text) else text
