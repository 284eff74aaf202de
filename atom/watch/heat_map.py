"""Draw values over rows and steps as a heat map: SVG with a text description."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from atom.watch.axis import px, tick
from atom.watch.markup import element

Values = Mapping[str, Mapping[int, float]]
"""Row -> column -> value."""


@dataclass(frozen=True)
class Columns:
    """How columns are named.

    Attributes:
        label: the text below a column.
        place: a column in words.
        plural: several columns.
    """

    label: Callable[[int], str]
    place: Callable[[int], str]
    plural: str


STEPS = Columns(tick, lambda step: f"step {step}", "steps")

STYLE = """
.heat { --ink: #1f2328; --faint: #6b7280; --heat: #0b62c4; --alarm: #b42318;
  font: 11px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .heat { --ink: #e6e8eb; --faint: #9aa4b2; --heat: #6cb2ff;
  --alarm: #ff8a80; } }
@media print { .heat { --ink: #000; --faint: #444; --heat: #0b62c4; --alarm: #a00; } }
.heat text { fill: var(--faint); }
.heat path { fill: var(--heat); } .heat .gap { fill: var(--alarm); }
"""
"""Style sheet that a page with heat maps needs once."""

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 92, 10, 6, 22
_MOST_COLUMNS, _MOST_ROWS, _LEVELS = 90, 48, 9
_LOG_FROM = 10.0
"""Positive values that span more than this factor get a logarithmic scale."""


def heat_map(
    title: str, values: Values, show: Callable[[float], str], columns: Columns = STEPS
) -> tuple[Element, str]:
    """Return a picture, and a caption with its scale.

    Args:
        title: the quantity.
        values: the values of each row, in the order from top to bottom.
        show: formats a value.
        columns: names the columns.
    """
    every = sorted({step for of_row in values.values() for step in of_row})
    steps, rows = _thinned(every, _MOST_COLUMNS), _thinned(list(values), _MOST_ROWS)
    finite = [v for of_row in values.values() for v in of_row.values() if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    log = low > 0 and high / low > _LOG_FROM
    height = max(min(14, 220 // len(rows)), 5)
    total = _TOP + _BOTTOM + height * len(rows)
    caption = f"{title}: {show(low)} (light) to {show(high)} (dark)"
    caption += ", logarithmic" if log else ""
    caption += f"; {len(rows)} of {len(values):,} rows" if len(rows) < len(values) else ""
    caption += (
        f"; {len(steps)} of {len(every):,} {columns.plural}" if len(steps) < len(every) else ""
    )
    told = f"{caption}. {_told(values, show, columns)}"
    picture = element(
        "svg",
        element("title", title),
        element("desc", told),
        class_="heat",
        role="img",
        aria_label=told,
        viewBox=f"0 0 {_WIDTH} {total}",
    )
    width = (_WIDTH - _LEFT - _RIGHT) / len(steps)
    cells: dict[int | None, list[str]] = {}
    for down, row in enumerate(rows):
        for across, step in enumerate(steps):
            if step in values[row]:
                level = _level(values[row][step], low, high, log=log)
                place = f"M{px(_LEFT + across * width)} {_TOP + down * height}"
                cells.setdefault(level, []).append(f"{place}h{px(width)}v{height}h-{px(width)}z")
    for level, parts in sorted(cells.items(), key=lambda cell: -1 if cell[0] is None else cell[0]):
        style = {"class_": "gap"} if level is None else {"fill_opacity": f"{(level + 1) / 9:.2f}"}
        picture.append(element("path", d="".join(parts), **style))
    picture.extend(_labels(rows, steps, height, width, columns))
    return picture, caption


def _level(value: float, low: float, high: float, *, log: bool) -> int | None:
    """Return the level of a value, 0 for the lowest; None if it is not finite."""
    if not math.isfinite(value):
        return None
    if log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    span = high / 2 - low / 2  # half of it cannot overflow
    part = (value / 2 - low / 2) / span if span > 0 else 0.5
    return min(int(part * _LEVELS), _LEVELS - 1)


def _labels(
    rows: Sequence[str], steps: Sequence[int], height: int, width: float, columns: Columns
) -> Iterator[Element]:
    every = math.ceil(12 / height)
    for down, row in enumerate(rows):
        if down % every == 0:
            y = _TOP + down * height + min(height, 12) - 2
            yield element("text", row[-14:], x=_LEFT - 6, y=y, text_anchor="end")
    every = max(len(steps) // 5, 1)
    for across in range(0, len(steps), every):
        x = px(_LEFT + (across + 0.5) * width)
        y = _TOP + len(rows) * height + 14
        yield element("text", columns.label(steps[across]), x=x, y=y, text_anchor="middle")


def _told(values: Values, show: Callable[[float], str], columns: Columns) -> str:
    """Return a description of the highest value, and of values that are not finite, in words."""
    cells = [(v, row, step) for row, found in values.items() for step, v in found.items()]
    finite = [cell for cell in cells if math.isfinite(cell[0])]
    words = []
    if finite:
        value, row, step = max(finite)
        words.append(f"highest: {show(value)} in {row} at {columns.place(step)}")
    if lost := [cell for cell in cells if not math.isfinite(cell[0])]:
        place = columns.place(lost[0][2])
        words.append(f"first not finite: {lost[0][1]} at {place} ({len(lost)} in all)")
    return f"{'; '.join(words)}."


def _thinned(every: list, most: int) -> list:
    """Return at most ``most`` evenly spaced items, the last one among them."""
    if len(every) <= most:
        return every
    return [every[(n + 1) * len(every) // most - 1] for n in range(most)]
