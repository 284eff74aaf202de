"""Print the ranking of the runs of a sweep, for ``atom compare``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from atom.io.files import write_given
from atom.io.json_data import dumps
from atom.io.printing import clean
from atom.io.terminal import Encodable, Styled
from atom.watch import sweep_picture
from atom.watch.markup import svg_file
from atom.watch.sweep import Sweep, importance_rows, rows


def show(sweep: Sweep, *, out: Path | None, as_json: bool) -> None:
    """Print a sweep as tables, or as JSON; draw it into the picture ``out``."""
    if out is not None:
        write_given(out, svg_file(sweep_picture.picture(sweep)))
    if as_json:
        print(dumps(_json(sweep), indent=2))
        return
    console = Styled(Encodable(sys.stdout))
    width = console.width if console.is_terminal else 10_000
    console.print(f"{clean(str(sweep.folder))}: {clean(sweep.title)}\n", soft_wrap=True)
    console.print(_table(*rows(sweep)), width=width, crop=False)
    if sweep.importances:
        console.print()
        console.print(_table(*importance_rows(sweep)), width=width, crop=False)
    if sweep.notes:
        console.print()
    for note in sweep.notes:
        console.print(clean(note), soft_wrap=True)
    if out is not None:
        console.print(f"\npicture    {clean(str(out))}", soft_wrap=True)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in head:
        table.add_column(clean(name), overflow="fold")
    for line in lines:
        table.add_row(*map(clean, line))
    return table


def _json(sweep: Sweep) -> dict[str, Any]:
    return {
        "objective": sweep.objective,
        "direction": sweep.direction,
        "runs": [
            {
                "run": str(trial.folder),
                "rank": rank if trial.counts else None,
                "value": _finite(trial.value),
                "state": trial.status.state,
                "reason": trial.status.reason,
                "step": trial.status.step,
                "settings": trial.settings,
            }
            for rank, trial in enumerate(sweep.trials, 1)
        ],
        "settings": [
            {
                "setting": one.setting,
                "values": one.values,
                "share": one.share,
                "best": one.best,
                "mean": one.worth,
            }
            for one in sweep.importances
        ],
        "notes": sweep.notes,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
