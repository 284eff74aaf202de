"""Show the numbers of a step: in a line of text, and in the columns of a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from atom.io.numbers import decimal
from atom.io.printing import clean
from atom.run_dir import chosen
from atom.run_dir.metrics import ALWAYS, SHOWN, StepMetrics

_MOST_HEAD = 24


@dataclass(frozen=True)
class Column:
    """A column of a terminal's table of steps."""

    head: str
    width: int
    show: Callable[[StepMetrics], str]


def words(row: StepMetrics, names: Sequence[str]) -> Iterator[str]:
    """Yield the numbers of a row in words: those always shown, chosen ones, and validations.

    Args:
        row: the row.
        names: of chosen numbers (``metrics.show``).
    """
    for name, shown in SHOWN.items():
        if (value := getattr(row, name)) is not None:
            yield shown.words.format(shown.text(value))
    for name, value in (row.objective or {}).items():
        yield f"{clean(name)} {decimal(value, 4)}"
    for name in names:
        if (found := chosen.find(row, name)) is not None:
            yield f"{clean(chosen.short(found[0]))} {chosen.text(found[1])}"
    for name, result in (row.validation or {}).items():
        yield f"{clean(name)} {result}"


def columns(
    row: StepMetrics, steps: int | None, width: int, names: Sequence[str] = ()
) -> list[Column]:
    """Return the columns that fit into ``width``; columns of chosen numbers are always there.

    Args:
        row: the first row.
        steps: the last step of the run, if it is known.
        width: the width of the terminal.
        names: of chosen numbers (``metrics.show``).
    """
    step = Column("step", max(len(str(steps or row.step)), 4), lambda row: str(row.step))
    extra = [
        Column(head := _head(name), max(len(head), 9), partial(_chosen, name)) for name in names
    ]
    shown = {name: s for name, s in SHOWN.items() if getattr(row, name) is not None}
    for name in sorted(shown, key=lambda name: shown[name].stays):
        widths = [each.width for each in (step, *extra)] + [s.width for s in shown.values()]
        if shown[name].stays < ALWAYS and sum(widths) + 2 * len(widths) - 2 > width:
            del shown[name]
    usual = [Column(s.head, s.width, partial(_cell, name)) for name, s in shown.items()]
    return [step, *usual, *extra]


def _head(name: str) -> str:
    return clean(chosen.short(name))[-_MOST_HEAD:]


def _cell(name: str, row: StepMetrics) -> str:
    value = getattr(row, name)
    return "" if value is None else SHOWN[name].text(value)


def _chosen(name: str, row: StepMetrics) -> str:
    found = chosen.find(row, name)
    return "" if found is None else chosen.text(found[1])
