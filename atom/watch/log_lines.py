"""Read the log lines of a run, from the launcher and the ranks, in order of time.

``logs/launcher.jsonl`` and ``logs/rank_N.jsonl`` hold JSON lines (:mod:`atom.run_dir.logs`);
``logs/rank_N.txt`` holds what the rank and its libraries printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io import json_data, strangers
from atom.io.files import is_regular
from atom.io.tail import Tail
from atom.run_dir.folder import RUN_FILE

LAUNCHER = "launcher"
ALL = "all"

_RANK = re.compile(r"rank_([0-9]{1,9})\.(jsonl|txt)")
_OWN = ("time", "level", "event", "rank", "logger", "exception", "stack")


@dataclass(frozen=True)
class Line:
    """A line of a log.

    Attributes:
        source: ``launcher``, or the rank's number.
        raw: the line as written, without the newline.
        fields: the parsed fields; empty if the line is not a JSON object.
    """

    source: str
    raw: bytes
    fields: dict[str, Any]

    @property
    def time(self) -> str:
        """Time stamp, ISO 8601 in UTC, which sorts as text; empty if the line has none."""
        time = self.fields.get("time")
        return time if isinstance(time, str) else ""

    @property
    def others(self) -> dict[str, Any]:
        """The record's own fields, without the common ones."""
        return {name: value for name, value in self.fields.items() if name not in _OWN}


class Logs:
    """The logs of a run.

    Args:
        run: the run folder.
        sources: rank numbers, ``launcher``, or ``all``.
        printed: read the printed output of ranks instead of their log records.

    Raises:
        UserError: the folder holds no run, or the run has no such log.
    """

    def __init__(self, run: Path, sources: list[str], *, printed: bool = False) -> None:
        if not is_regular(run / RUN_FILE):
            raise UserError(f"{run} holds no run", valid=f"a folder with a {RUN_FILE}")
        strangers.check(run)
        self._folder = run / "logs"
        self._ending = "txt" if printed else "jsonl"
        self._sources = sources
        self._tails: dict[str, Tail] = {}
        there = self._there()
        if missing := [source for source in sources if source not in (ALL, *there)]:
            name = LAUNCHER if missing[0] == LAUNCHER else f"rank_{missing[0]}"
            raise UserError(
                f"{self._folder} holds no {name}.{self._ending}", valid=f"{_named(there)}"
            )

    def lines(self) -> list[Line]:
        """Return the lines of all sources that were added since the last call, sorted by time."""
        found: list[tuple[str, Line]] = []
        there = self._there()
        for source in there if ALL in self._sources else self._sources:
            tail = self._tails.setdefault(source, Tail(there[source], below=self._folder.parent))
            found += _timed(_line(source, raw) for raw in tail.lines())
        return [line for _, line in sorted(found, key=lambda timed: timed[0])]

    def close(self) -> None:
        """Close the files."""
        for tail in self._tails.values():
            tail.close()

    def _there(self) -> dict[str, Path]:
        """Return the existing logs by source, the launcher first."""
        launcher = self._folder / f"{LAUNCHER}.{self._ending}"
        ranks = []
        for path in self._folder.glob(f"rank_*.{self._ending}"):
            if (match := _RANK.fullmatch(path.name)) is not None:
                ranks.append((int(match[1]), path))
        first = {LAUNCHER: launcher} if is_regular(launcher) else {}
        return first | {str(rank): path for rank, path in sorted(ranks)}


def _line(source: str, raw: bytes) -> Line:
    try:
        fields = json_data.loads(raw)
    except ValueError:
        fields = {}
    return Line(source, raw, fields if isinstance(fields, dict) else {})


def _timed(lines: Iterator[Line]) -> Iterator[tuple[str, Line]]:
    """Yield lines with their sort time; a line without one uses that of the line before."""
    latest = ""
    for line in lines:
        latest = max(latest, line.time)
        yield latest, line


def _named(there: dict[str, Path]) -> str:
    names = list(there)
    if not names:
        return "none, there are no logs yet"
    shown = names if len(names) <= 8 else [*names[:6], "…", names[-1]]
    return ", ".join([ALL, *shown])
