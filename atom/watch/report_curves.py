"""Draw the curves of a report, with events marked on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from xml.etree.ElementTree import Element

from atom.io.numbers import decimal
from atom.run_dir import events
from atom.run_dir.metrics import StepMetrics, by_set
from atom.watch.chart import Mark, Series, chart
from atom.watch.compare import CURVES
from atom.watch.markup import element
from atom.watch.record import Record

Value = Callable[[StepMetrics], float]

_MFU = ("mfu", "model FLOPS utilization", lambda row: math.nan if row.mfu is None else row.mfu)


def curves(record: Record) -> list[Element]:
    """Return one figure per quantity, and an explanation of the figures."""
    if not record.rows:
        return [element("p", "No step has been logged yet.", class_="faint")]
    drawn = [*CURVES, *([_MFU] if any(row.mfu is not None for row in record.rows) else [])]
    marks = list(_marks(record))
    # Not every step that was trained was logged.
    drawn_steps = [row.step for row in (record.rows[-1], *record.done_again)]
    last = max([record.status.step, *drawn_steps, *(mark.step for mark in marks)])
    steps = record.rows[0].step, last
    figures = []
    for _, title, value in drawn:
        points, old = (
            [(row.step, value(row)) for row in rows] for rows in (record.rows, record.done_again)
        )
        figures.append(_figure(title, points, old, marks, steps))
    figures += _validation(record, marks, steps)
    rows = [*record.rows, *record.done_again]
    gaps = any(not math.isfinite(value(row)) for _, _, value in CURVES for row in rows)
    words = _legend(marks, again=bool(record.done_again), gaps=gaps)
    return [element("div", *figures, class_="curves"), element("p", words, class_="faint")]


def _validation(record: Record, marks: list[Mark], steps: tuple[float, float]) -> Iterator[Element]:
    """Yield one figure per validation set: its loss."""
    again = by_set(record.done_again)
    for name, results in by_set(record.rows).items():
        title = f"validation loss of {name}, nats per token"
        points, old = (
            [(step, found.loss) for step, found in each] for each in (results, again.get(name, ()))
        )
        caption = f"{title}; the last: {results[-1][1]}"
        yield _figure(title, points, old, marks, steps, caption)


def _figure(
    title: str,
    points: list[tuple[int, float]],
    old: list[tuple[int, float]],
    marks: list[Mark],
    steps: tuple[float, float],
    caption: str | None = None,
) -> Element:
    """Return a figure of (step, value); ``old`` are those of steps that were repeated later."""
    series = [Series("these steps", points)]
    if old:
        series.append(Series("repeated steps", old, old=True))
    picture = chart(title, series, marks=marks, show=lambda number: decimal(number, 4), steps=steps)
    return element("figure", element("figcaption", caption or title), picture)


def _legend(marks: list[Mark], *, again: bool, gaps: bool) -> str:
    kinds = {mark.kind for mark in marks}
    words = ["Across: steps."]
    if "restart" in kinds:
        words.append("Red dashed lines: restarts of the ranks.")
    if again:
        words.append("Grey dashes: values of steps that were repeated later.")
    if "checkpoint" in kinds:
        words.append("Triangles below: checkpoints.")
    if "fault" in kinds:
        words.append("Red dots: numerical faults.")
    if gaps:
        words.append("Red crosses: a value that is not finite.")
    return " ".join(words)


def _marks(record: Record) -> Iterator[Mark]:
    for event in record.happened:
        step = event.get("step")
        if not isinstance(step, int | float):
            continue
        match event.get("event"):
            case events.FAILED if event.get("restart"):
                yield Mark(step, "restart", f"restarted after step {step}: {event.get('reason')}")
            case events.CHECKPOINT_SAVED:
                yield Mark(step, "checkpoint", f"checkpoint of step {step}")
            case events.NUMERICAL_FAULT:
                yield Mark(step, "fault", f"step {step}: {event.get('reason')}")
