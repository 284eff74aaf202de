"""Draw a roofline plot: each kernel's rate against the device's limit at its FLOPs per byte.

A second chart below shows the fractions of the ceiling, one line per operation: most operations
have few FLOPs per byte, so their points lie close together under the roof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from atom.bench.measure import BACKWARD, FORWARD, Pass, Row
from atom.bench.report import Report, rate
from atom.watch import chart
from atom.watch.axis import Axis, px, tick
from atom.watch.markup import element

WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 56, 190, 34, 40
_PLOT = 300
"""Height of a plot, in the picture's units."""

_LINE = 15
_ROW = 30
_NAMES = 236
"""Width of the operation names beside the fractions of the ceiling."""

_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.5 -3.5h7v7h-7z",
    "M0 -4.5l4.5 8h-9z",
    "M0 -5l4.5 5l-4.5 5l-4.5 -5z",
    "M0 4.5l4.5 -8h-9z",
    "M-5 0l3 -4h4l3 4l-3 4h-4z",
)
"""Marker shapes around (0, 0), one per kernel: colors alone exclude color-blind readers."""

_STYLE = "".join(
    f".chart .k{n} {{ stroke: var(--c{n}); fill: var(--c{n}); stroke-width: 1.4; }}\n"
    for n in range(chart.COLORS)
) + (
    ".chart .hollow { fill: none; }\n"
    ".chart .roof { fill: none; stroke: var(--ink); stroke-width: 1.6; }\n"
    ".chart .paper { fill: #fff; }\n"
    "@media (prefers-color-scheme: dark) { .chart .paper { fill: #15181d; } }\n"
)


@dataclass(frozen=True)
class _Point:
    row: Row
    direction: str
    one: Pass

    @property
    def intensity(self) -> float:
        return self.one.flops / self.one.bytes


def picture(report: Report) -> Element:
    """Return a plot for each dtype, with each operation at its largest timed size.

    Operations without arithmetic, such as an embedding lookup, are left out of the plot.
    """
    dtypes = [dtype for dtype in report.ceiling.flops if _points(report, dtype)]
    height = sum(_height(report, dtype) for dtype in dtypes) or _PLOT
    device = report.device["name"]
    title = f"Kernels on {device}" + (", a CPU" if report.device["kind"] == "cpu" else "")
    found = element(
        "svg",
        element("title", title),
        element("desc", "; ".join(_told(report, dtypes)) or "nothing was timed"),
        element("style", chart.STYLE, _STYLE),
        element("rect", class_="paper", width=WIDTH, height=height),
        class_="chart",
        role="img",
        viewBox=f"0 0 {WIDTH} {height}",
        width=WIDTH * 1.5,
        height=height * 1.5,
    )
    top = 0
    for dtype in dtypes:
        panel = element("g", transform=f"translate(0 {top})")
        panel.append(element("text", f"{title}, {dtype}", class_="strong", x=_LEFT, y=18))
        panel.extend(_panel(report, dtype))
        found.append(panel)
        top += _height(report, dtype)
    return found


def _points(report: Report, dtype: str) -> list[_Point]:
    """Return the passes to draw: each kernel at its function's largest size."""
    largest: dict[tuple[str, str], Row] = {}
    for row in report.rows:
        if row.dtype != dtype or not row.passes:
            continue
        before = largest.get((row.function, row.kernel))
        if before is None or row.passes[FORWARD].bytes > before.passes[FORWARD].bytes:
            largest[row.function, row.kernel] = row
    return [
        _Point(row, direction, row.passes[direction])
        for row in largest.values()
        for direction in (FORWARD, BACKWARD)
        if direction in row.passes
    ]


def _panel(report: Report, dtype: str) -> Iterator[Element]:
    every = _points(report, dtype)
    points = [point for point in every if point.one.flops]
    bandwidth, peak = report.ceiling.bandwidth, report.ceiling.flops[dtype]
    ridge = peak / bandwidth
    wide = [point.intensity for point in points] + [ridge]
    tall = [point.one.flops_per_second for point in points] + [peak]
    x_axis = Axis(min(wide) / 2, max(wide) * 4, log=True, begin=_LEFT, end=WIDTH - _RIGHT)
    y_axis = Axis(min(tall) / 2, max(tall) * 3, log=True, begin=_TOP + _PLOT, end=_TOP)
    yield from _grid(x_axis, y_axis)
    yield from _roof(x_axis, y_axis, bandwidth, peak)
    kernels = list(dict.fromkeys(point.row.kernel for point in every))
    functions = list(dict.fromkeys(point.row.function for point in every))
    for point in points:
        place = x_axis.place(point.intensity), y_axis.place(point.one.flops_per_second)
        yield _marker(point, kernels.index(point.row.kernel), place)
    yield from _numbers(points, functions, x_axis, y_axis)
    yield from _legend(kernels)
    below = element("g", transform=f"translate(0 {_TOP + _PLOT + _BOTTOM})")
    below.extend(_parts(every, kernels, functions))
    yield below


def _grid(x_axis: Axis, y_axis: Axis) -> Iterator[Element]:
    for value in y_axis.ticks(4):
        y = px(y_axis.place(value))
        yield element("line", class_="grid", x1=x_axis.begin, x2=x_axis.end, y1=y, y2=y)
        yield element("text", tick(value), x=_LEFT - 6, y=px(float(y) + 4), text_anchor="end")
    for value in x_axis.ticks(4):
        x = px(x_axis.place(value))
        yield element("line", class_="grid", x1=x, x2=x, y1=y_axis.begin, y2=y_axis.end)
        yield element("text", tick(value), x=x, y=y_axis.begin + 14, text_anchor="middle")
    middle = px((x_axis.begin + x_axis.end) / 2)
    yield element("text", "FLOP a byte", x=middle, y=y_axis.begin + 30, text_anchor="middle")
    yield element("text", "FLOP/s", x=_LEFT - 6, y=_TOP - 10, text_anchor="end")


def _roof(x_axis: Axis, y_axis: Axis, bandwidth: float, peak: float) -> Iterator[Element]:
    ridge = peak / bandwidth
    # Start the slope where it enters the plot.
    start = max(x_axis.low, y_axis.low / bandwidth)
    corners = [(start, start * bandwidth), (ridge, peak), (x_axis.high, peak)]
    places = [f"{px(x_axis.place(x))} {px(y_axis.place(y))}" for x, y in corners]
    words = f"the roof: copy {rate(bandwidth, 'B/s')}, matrix product {rate(peak, 'FLOP/s')}"
    yield element("path", element("title", words), class_="roof", d="M" + "L".join(places))
    yield element("text", words, x=_LEFT + 8, y=_TOP + 16)


def _marker(point: _Point, number: int, place: tuple[float, float]) -> Element:
    hollow = " hollow" if point.direction == BACKWARD else ""
    return element(
        "path",
        element("title", _words(point)),
        class_=f"k{number % chart.COLORS}{hollow}",
        transform=f"translate({px(place[0])} {px(place[1])})",
        d=_MARKERS[number % len(_MARKERS)],
    )


def _numbers(
    points: list[_Point], functions: list[str], x_axis: Axis, y_axis: Axis
) -> Iterator[Element]:
    """Write each operation's number above its highest kernel, where there is room."""
    highest: dict[tuple[str, str], tuple[float, float]] = {}
    taken: list[tuple[float, float]] = []
    for point in points:
        x, y = x_axis.place(point.intensity), y_axis.place(point.one.flops_per_second)
        key = (point.row.function, point.direction)
        highest[key] = min(highest.get(key, (x, y)), (x, y), key=lambda place: place[1])
        taken.append((x, y + 4))  # a number is anchored at its baseline
    for (function, _), (x, y) in sorted(highest.items(), key=lambda entry: -entry[1][1]):
        for above in (7, 11, 15):
            free = y - above
            if all(abs(x - other) > 12 or abs(free - beside) > 9 for other, beside in taken):
                taken.append((x, free))
                number = str(functions.index(function) + 1)
                place = {"x": px(x), "y": px(free)}
                yield element("text", number, class_="strong", text_anchor="middle", **place)
                break


def _parts(points: list[_Point], kernels: list[str], functions: list[str]) -> Iterator[Element]:
    """Draw the fractions of the ceiling: one row per operation, forward above backward."""
    most = max(1.0, *(point.one.fraction for point in points))
    axis = Axis(0.0, most * 1.05, log=False, begin=_NAMES, end=WIDTH - 20)
    bottom = _ROW * len(functions) + 12
    yield element("text", "part of the ceiling", class_="strong", x=_LEFT, y=4)
    for value in axis.ticks(5):
        x = px(axis.place(value))
        yield element("line", class_="grid", x1=x, x2=x, y1=12, y2=bottom)
        yield element("text", f"{100 * value:.0f} %", x=x, y=bottom + 14, text_anchor="middle")
    shapes = {point.row.function: point.row.shape for point in points}
    for row in range(1, len(functions)):
        line = 12 + _ROW * row
        yield element("line", class_="grid", x1=_LEFT, x2=axis.end, y1=line, y2=line)
    whole = px(axis.place(1.0))
    yield element("line", class_="roof", x1=whole, x2=whole, y1=12, y2=bottom)
    for number, function in enumerate(functions, 1):
        y = 12 + _ROW * (number - 0.5)
        yield element("text", f"{number}", class_="strong", x=_LEFT - 6, y=y, text_anchor="end")
        yield element("text", function, class_="strong", x=_LEFT, y=y)
        yield element("text", shapes[function], x=_LEFT, y=y + 12)
    for point in points:
        y = 12 + _ROW * (functions.index(point.row.function) + 0.5)
        y += 5 if point.direction == BACKWARD else -5
        place = axis.place(point.one.fraction), y
        yield _marker(point, kernels.index(point.row.kernel), place)


def _legend(kernels: list[str]) -> Iterator[Element]:
    x, y = WIDTH - _RIGHT + 16, _TOP + 8
    for number, kernel in enumerate(kernels):
        style = f"k{number % chart.COLORS}"
        marker = _MARKERS[number % len(_MARKERS)]
        for place, hollow in ((x, ""), (x + 14, " hollow")):
            moved = f"translate({place} {y - 4})"
            yield element("path", class_=style + hollow, transform=moved, d=marker)
        yield element("text", kernel, x=x + 26, y=y)
        y += _LINE
    yield element("text", "filled: forward, hollow: backward", x=x - 4, y=y)


def _height(report: Report, dtype: str) -> int:
    functions = len({point.row.function for point in _points(report, dtype)})
    return _TOP + _PLOT + _BOTTOM + _ROW * functions + 40


def _told(report: Report, dtypes: list[str]) -> Iterator[str]:
    for dtype in dtypes:
        yield from (_words(point) for point in _points(report, dtype))


def _words(point: _Point) -> str:
    row = point.row
    return (
        f"{row.function} {row.dtype} {row.shape}, {row.kernel}, {point.direction}: "
        f"{100 * point.one.fraction:.0f} % of the ceiling"
    )
