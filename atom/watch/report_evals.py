"""Show the results of evaluations: a table of the newest, and curves over checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from atom.io.numbers import decimal
from atom.run_dir import evals
from atom.run_dir.evals import Evaluation
from atom.watch import report_tables
from atom.watch.chart import Series, chart
from atom.watch.markup import element
from atom.watch.record import Record

_MOST = 40
"""Maximum number of figures."""

_HEADS = ("task", "metric", "value", "standard error", "few-shot", "documents", "step")


def evaluations(record: Record) -> list[Element]:
    """Return the newest result of each number, and a curve of those of several checkpoints."""
    if not record.evaluations:
        return []
    found = evals.by_name(record.evaluations)
    table = report_tables.table(
        _HEADS, [_words(each[-1]) for each in found.values()], numbers=range(2, len(_HEADS))
    )
    figures = list(_figures(found))
    curves = [element("div", *figures[:_MOST], class_="curves")] if figures else []
    return [table, *curves]


def _words(result: Evaluation) -> tuple[str, ...]:
    return (
        result.task,
        result.metric,
        decimal(result.value, 4),
        "–" if result.stderr is None else decimal(result.stderr, 4),
        "–" if result.few_shot is None else str(result.few_shot),
        f"{result.samples:,}",
        "–" if result.step is None else f"{result.step:,}",
    )


def _figures(found: dict[str, list[Evaluation]]) -> Iterator[Element]:
    for name, points in evals.points(found):
        if len(points) > 1:
            picture = chart(name, [Series("checkpoints", points)], show=lambda n: decimal(n, 4))
            yield element("figure", element("figcaption", name), picture)
