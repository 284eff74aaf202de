"""Draw curves over steps as SVG that scales, prints, and has a text description."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element

from atom.watch.axis import Axis, px, tick
from atom.watch.markup import element

Point = tuple[float, float]

WIDTH, HEIGHT = 460, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 10, 12, 24
_PLOT_WIDTH, _PLOT_HEIGHT = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

_MOST_MARKS = 120
_LOG_FROM = 1000.0
"""A curve whose values are all positive and span more than this factor gets a logarithmic axis."""

COLORS = 6
STYLE = """
.chart { --ink: #1f2328; --faint: #6b7280; --grid: #e3e6ea; --alarm: #b42318; --calm: #6b7280;
  --c0: #0b62c4; --c1: #b45309; --c2: #0f7b5f; --c3: #a21caf; --c4: #4d5a00; --c5: #b4234a;
  font: 11px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { .chart { --ink: #e6e8eb; --faint: #9aa4b2; --grid: #333a45;
  --alarm: #ff8a80; --calm: #9aa4b2; --c0: #6cb2ff; --c1: #f5b05c; --c2: #4fd1ae; --c3: #e58cf0;
  --c4: #c9d65c; --c5: #ff8fae; } }
@media print { .chart { --ink: #000; --faint: #444; --grid: #ccc; --alarm: #a00; --calm: #444;
  --c0: #0b62c4; --c1: #b45309; --c2: #0f7b5f; --c3: #a21caf; --c4: #4d5a00; --c5: #b4234a; } }
.chart text { fill: var(--faint); }
.chart .strong { fill: var(--ink); font-weight: 600; }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.chart .s0 { stroke: var(--c0); } .chart .s1 { stroke: var(--c1); stroke-dasharray: 7 3; }
.chart .s2 { stroke: var(--c2); stroke-dasharray: 2 3; }
.chart .s3 { stroke: var(--c3); stroke-dasharray: 9 3 2 3; }
.chart .s4 { stroke: var(--c4); stroke-dasharray: 4 2; }
.chart .s5 { stroke: var(--c5); stroke-dasharray: 12 4; }
.chart .old { stroke: var(--calm); stroke-width: 1.2; stroke-dasharray: 3 3; }
.chart .restart { stroke: var(--alarm); stroke-width: 1; stroke-dasharray: 4 3; }
.chart .restart-head, .chart .fault { fill: var(--alarm); }
.chart .checkpoint { fill: var(--calm); }
.chart .gap { stroke: var(--alarm); stroke-width: 1.4; }
"""
"""Style sheet that a page or file with charts needs once. Curves differ in brightness and dashes
too, for readers who cannot distinguish hues."""

PAPER = """
.chart .paper { fill: #fff; }
@media (prefers-color-scheme: dark) { .chart .paper { fill: #15181d; } }
"""
"""Style sheet of the background of a picture in a file of its own."""


@dataclass(frozen=True)
class Series:
    """A curve of points (step, value) in order of steps; a non-finite value is a gap with a cross.

    ``old`` marks a curve of steps that were repeated later.
    """

    name: str
    points: Sequence[Point]
    old: bool = False


@dataclass(frozen=True)
class Mark:
    """An event at a step."""

    step: float
    kind: Literal["restart", "checkpoint", "fault"]
    words: str


def chart(
    title: str,
    series: Sequence[Series],
    *,
    marks: Sequence[Mark] = (),
    show: Callable[[float], str] = lambda value: f"{value:.4g}",
    steps: tuple[float, float] | None = None,
) -> Element:
    """Return a picture of curves.

    Args:
        title: the quantity, with its unit.
        series: the curves; they share both axes.
        marks: events, drawn at their steps.
        show: formats a value for the description.
        steps: the first and the last step of the axis; by default those of the points.
    """
    finite = [p for one in series for p in one.points if math.isfinite(p[1])]
    across = steps or _extent([x for one in series for x, _ in one.points], (0.0, 1.0))
    x_axis = Axis(*across, log=False, begin=_LEFT, end=WIDTH - _RIGHT)
    values = [y for _, y in finite]
    y_axis = _value_axis(values)
    kinds = {mark.kind for mark in marks}
    words = "; ".join(filter(None, [_told(one, show) for one in series if not one.old]))
    told = f"{words or 'no values'}." + (
        f" Marked: {', '.join(f'{kind}s' for kind in sorted(kinds))}." if kinds else ""
    )
    picture = frame(title, told, WIDTH, HEIGHT)
    picture.extend(_grid(x_axis, y_axis))
    for mark in _thinned(marks):
        if x_axis.low <= mark.step <= x_axis.high:
            picture.append(_mark(mark, x_axis.place(mark.step)))
    colored = 0
    for one in sorted(series, key=lambda one: not one.old):
        style = "old" if one.old else f"s{colored % COLORS}"
        colored += not one.old
        picture.extend(_curve(one, style, x_axis, y_axis))
    if not finite:
        middle = {"x": _LEFT + _PLOT_WIDTH / 2, "y": _TOP + _PLOT_HEIGHT / 2}
        picture.append(element("text", "no finite values", text_anchor="middle", **middle))
    return picture


# ---------------------------------------------------------------------------- axes


def _value_axis(values: Sequence[float]) -> Axis:
    low, high = _extent(values, (0.0, 1.0))
    log = low > 0 and high / low > _LOG_FROM
    if not log:
        room = (high / 2 - low / 2) * 0.1 or abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
        if not math.isfinite(low) or not math.isfinite(high):
            low, high = max(low, -1.7e308), min(high, 1.7e308)
        if low < 0 <= min(values, default=0.0):
            low = 0.0
    return Axis(low, high, log, begin=HEIGHT - _BOTTOM, end=_TOP)


def _extent(values: Sequence[float], otherwise: tuple[float, float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else otherwise


def frame(title: str, words: str, width: int, height: float) -> Element:
    """Return an empty picture with its description in ``words``; sizes are in units of its own."""
    return element(
        "svg",
        element("title", title),
        element("desc", words),
        class_="chart",
        role="img",
        aria_label=f"{title}. {words}",
        viewBox=f"0 0 {width} {px(height)}",
    )


def _grid(x_axis: Axis, y_axis: Axis) -> Iterator[Element]:
    for value in y_axis.ticks(4):
        y = px(y_axis.place(value))
        yield element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
        yield element("text", tick(value), x=_LEFT - 6, y=px(float(y) + 4), text_anchor="end")
    for value in x_axis.ticks(5, whole=True):
        x = px(x_axis.place(value))
        yield element("text", tick(value), x=x, y=HEIGHT - 8, text_anchor="middle")
    base = HEIGHT - _BOTTOM
    yield element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=base, y2=base)


# ---------------------------------------------------------------------------- curves


def _curve(one: Series, style: str, x_axis: Axis, y_axis: Axis) -> Iterator[Element]:
    parts: list[str] = []
    for piece in _pieces(one.points):
        placed = [f"{px(x_axis.place(x))} {px(y_axis.place(y))}" for x, y in _reduced(piece)]
        if len(placed) == 1:
            placed *= 2  # a single point: a line of length zero with round ends
        parts.append("M" + "L".join(placed))
    if parts:
        yield element("path", element("title", one.name), class_=f"line {style}", d="".join(parts))
    crosses = [x for x, y in one.points if not math.isfinite(y)]
    for x in crosses[:: len(crosses) // _MOST_MARKS + 1]:
        place, y = x_axis.place(x), _TOP + 5
        yield element(
            "path",
            element("title", f"{one.name}: not finite at step {x:g}"),
            class_="gap",
            d=f"M{px(place - 3)} {y - 3}l6 6m0 -6l-6 6",
        )


def _pieces(points: Sequence[Point]) -> Iterator[list[Point]]:
    """Yield the segments of finite values with ascending steps."""
    piece: list[Point] = []
    for x, y in points:
        if piece and (not math.isfinite(y) or x <= piece[-1][0]):
            yield piece
            piece = []
        if math.isfinite(y):
            piece.append((x, y))
    if piece:
        yield piece


def _reduced(points: list[Point]) -> list[Point]:
    """Return the visible points: the first, lowest, highest and last of each pixel column."""
    if len(points) <= 2 * _PLOT_WIDTH:
        return points
    found: list[Point] = []
    for column in range(_PLOT_WIDTH):
        begin, end = (n * len(points) // _PLOT_WIDTH for n in (column, column + 1))
        part = points[begin:end]
        ends = (part[0], min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1]), part[-1])
        found += sorted(set(ends))
    return found


# ---------------------------------------------------------------------------- marks


def _thinned(marks: Sequence[Mark]) -> list[Mark]:
    """Return the marks to draw: all except checkpoints, which are thinned to a visible number."""
    saved = [mark for mark in marks if mark.kind == "checkpoint"]
    others = [mark for mark in marks if mark.kind != "checkpoint"]
    return saved[:: len(saved) // _MOST_MARKS + 1] + others[: 4 * _MOST_MARKS]


def _mark(mark: Mark, x: float) -> Element:
    title = element("title", mark.words)
    base = HEIGHT - _BOTTOM
    if mark.kind == "checkpoint":
        return element("path", title, class_="checkpoint", d=f"M{px(x)} {base}l-3.5 6h7z")
    if mark.kind == "fault":
        return element("circle", title, class_="fault", cx=px(x), cy=_TOP + 5, r=3)
    line = element("line", class_="restart", x1=px(x), x2=px(x), y1=_TOP, y2=base)
    head = element("path", class_="restart-head", d=f"M{px(x)} {_TOP}l-4 -7h8z")
    return element("g", title, line, head)


def _told(one: Series, show: Callable[[float], str]) -> str:
    """Return a description of a curve in words."""
    finite = [p for p in one.points if math.isfinite(p[1])]
    lost = len(one.points) - len(finite)
    if not finite:
        return f"{one.name}: no finite values" if one.points else ""
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    gaps = f", not finite at {lost} steps" if lost else ""
    return (
        f"{one.name}: {show(y0)} at step {x0:g}, {show(y1)} at step {x1:g}, "
        f"between {show(low)} and {show(high)}{gaps}"
    )
