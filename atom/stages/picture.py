"""Show a recipe: a table of its stages with what became of them, and its graph."""

from __future__ import annotations

import time

from rich.table import Table
from rich.text import Text

from atom.errors import UserError
from atom.io.numbers import clock, decimal
from atom.run_dir import metrics
from atom.run_dir.status import status
from atom.stages.composed import Composed
from atom.stages.decided import Decision
from atom.stages.declaration import Stage

_STYLES = {
    "finished": "green", "running": "cyan", "failed": "red", "changed": "yellow",
    "interrupted": "yellow", "stopped": "yellow",
}  # fmt: skip
_MARKS = {"finished": "✓", "running": "▶", "failed": "✗"}


def table(made: Composed, decisions: dict[str, Decision], *, live: bool) -> Table:
    """Return a row for each stage.

    Args:
        made: the recipe.
        decisions: what becomes of each stage.
        live: whether a process runs the recipe now.
    """
    found = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("stage", "command", "state", "time", "result", ""):
        found.add_column(title, justify="right" if title == "time" else "left", no_wrap=title != "")
    depths = _depths(made)
    for name, stage in made.stages.items():
        decision, record = decisions[name], decisions[name].record
        state = decision.state
        running = live and record is not None and record.state == "running"
        if running:
            state = "running"
        seconds = record.seconds if record else 0.0
        if running and record:
            seconds += time.time() - record.began
        found.add_row(
            _tree(depths[name]) + name, _line(stage),
            Text(state, _STYLES.get(state, "dim")),
            clock(seconds) if seconds else "", result(made, name),
            Text(decision.why if not running else "", "dim"),
        )  # fmt: skip
    return found


def result(made: Composed, name: str) -> str:
    """Return what a run has reached, in words; empty for other stages."""
    if made.stages[name].command != "train":
        return ""
    try:
        found = status(made.place(name))
    except UserError:
        return ""
    words = [f"step {found.step:,}/{found.steps:,}" if found.steps else ""]
    if found.loss is not None:
        words.append(f"loss {decimal(found.loss, 4)}")
    rows = metrics.by_set(metrics.read(made.place(name) / metrics.FILE_NAME))
    for of, points in rows.items():
        _, last = points[-1]
        words.append(f"{of} {decimal(last.loss, 4)}")
    return "  ".join(word for word in words if word)


def graph(made: Composed, decisions: dict[str, Decision] | None = None) -> str:
    """Return the graph as Mermaid text, which many pages show as a picture."""
    lines = ["flowchart LR"]
    for name, stage in made.stages.items():
        mark = _MARKS.get(decisions[name].state, "") if decisions else ""
        label = f"{mark} {name}".strip()
        lines.append(f'  {name}["{label}<br/><small>{stage.command}</small>"]')
    for name, needs in made.needs.items():
        lines += [f"  {need} --> {name}" for need in needs]
    return "\n".join(lines) + "\n"


def _depths(made: Composed) -> dict[str, int]:
    """Return how many stages come one after another before each stage."""
    found: dict[str, int] = {}
    for stage in made.stages:  # in order
        found[stage] = max((found[need] + 1 for need in made.needs[stage]), default=0)
    return found


def _tree(depth: int) -> str:
    return "" if depth == 0 else "  " * (depth - 1) + "└ "


def _line(stage: Stage) -> str:
    """Return a stage in one line: its command and what it takes from."""
    taken = f" from {', '.join(stage.sources)}" if stage.sources else ""
    return f"{stage.command}{taken}"
