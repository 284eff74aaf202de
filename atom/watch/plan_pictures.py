"""Draw a plan: the parts of a step, memory, scaling, the pipeline's order, finishing days."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from atom.watch.axis import Axis, px, tick
from atom.watch.chart import WIDTH, frame
from atom.watch.markup import element

STYLE = """
.chart .k0 { fill: var(--c0); } .chart .k1 { fill: var(--c3); } .chart .k2 { fill: var(--c2); }
.chart .k3 { fill: var(--c4); } .chart .k4 { fill: var(--c1); } .chart .k5 { fill: var(--grid); }
.chart .k6 { fill: var(--c5); } .chart .k7 { fill: var(--c1); fill-opacity: .55; }
.chart .part { stroke: var(--edge); stroke-width: .6; }
.chart { --edge: #fff; } @media (prefers-color-scheme: dark) { .chart { --edge: #15181d; } }
.chart .limit { stroke: var(--alarm); stroke-width: 1.4; stroke-dasharray: 5 3; }
.chart .dot { fill: var(--c0); } .wide { grid-column: 1 / -1; }
"""

_WIDE = 940
_ROW, _BAR = 46, 24
_MOST_ACTIONS = 1200
_BINS = 30

Segment = tuple[str, str, float]
"""Name, style and size of a part of a bar."""

STEP = {
    "products": ("matrix products", "k0"),
    "attention": ("attention", "k1"),
    "memory": ("memory-bound operations", "k2"),
    "launches": ("launches", "k3"),
    "optimizer": ("optimizer", "k3"),
    "other": ("data, clipping, synchronization", "k3"),
    "idle": ("idle in the pipeline", "k5"),
    "stragglers": ("waiting for the slowest rank", "k6"),
}

MEMORY = {
    "parameters": ("parameters", "k0"),
    "gradients": ("gradients", "k1"),
    "optimizer": ("optimizer states", "k2"),
    "averages": ("averaged weights", "k2"),
    "gathered": ("gathered parameters", "k4"),
    "reduced": ("gradients before reduction", "k7"),
    "activations": ("activations", "k6"),
    "working": ("recomputation or logits", "k3"),
    "reserve": ("allocator's reserve", "k5"),
}


def step_segments(told: Mapping[str, Any]) -> list[Segment]:
    """Return the parts of a step, communication before waiting."""
    parts = [(*STEP[name], float(seconds)) for name, seconds in told["parts"].items()]
    sent = [(f"{n} communication", "k4", float(s)) for n, s in told["exposed"].items()]
    idle = [part for part in parts if part[1] in ("k5", "k6")]
    return [part for part in parts if part not in idle] + sent + idle


def memory_segments(told: Mapping[str, Any]) -> list[Segment]:
    """Return the parts of the memory, in GiB."""
    return [(*MEMORY[name], float(gib)) for name, gib in told["memory"].items()]


def bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[Segment]]],
    unit: str,
    limit: float | None = None,
) -> Element:
    """Return a stacked bar for each row, with a legend.

    Args:
        title: the quantity.
        rows: name and segments of each bar.
        unit: of the sizes.
        limit: a size to mark.
    """
    totals = [sum(size for *_, size in segments) for _, segments in rows]
    shown = [
        [one for one in segments if one[2] >= max(total, 1e-30) / 1000]
        for (_, segments), total in zip(rows, totals, strict=True)
    ]
    names = dict.fromkeys((name, style) for segments in shown for name, style, _ in segments)
    legend = -(-len(names) // 4)
    height = len(rows) * _ROW + 26 + legend * 18
    axis = Axis(0.0, max(*totals, limit or 0.0, 1e-30), log=False, begin=8, end=_WIDE - 8)
    words = "; ".join(
        f"{row[0]}: {total:.3g} {unit}" for row, total in zip(rows, totals, strict=True)
    )
    picture = frame(title, words, _WIDE, height)
    for number, ((name, _), segments) in enumerate(zip(rows, shown, strict=True)):
        y = number * _ROW
        label = f"{name}   {totals[number]:.3g} {unit}"
        picture.append(element("text", label, class_="strong", x=8, y=y + 14))
        at = 0.0
        for part, style, size in segments:
            x, end = axis.place(at), axis.place(at + size)
            share = f"{part}: {size:.3g} {unit}, {size / totals[number]:.1%}"
            box = element(
                "rect", element("title", share), class_=f"part {style}", x=px(x), y=y + 19,
                width=px(max(end - x, 0.5)), height=_BAR,
            )  # fmt: skip
            picture.append(box)
            at += size
    base = len(rows) * _ROW + 4
    for value in axis.ticks(6):
        place = px(axis.place(value))
        picture.append(element("text", tick(value), x=place, y=base + 12, text_anchor="middle"))
    if limit:
        place = px(axis.place(limit))
        line = element("line", class_="limit", x1=place, x2=place, y1=16, y2=base - 2)
        line.append(element("title", f"limit: {limit:.1f} {unit}"))
        picture.append(line)
    for number, (name, style) in enumerate(names):
        x, y = 8 + number % 4 * (_WIDE / 4), base + 22 + number // 4 * 18
        picture.append(element("rect", class_=style, x=px(x), y=y, width=10, height=10))
        picture.append(element("text", name, x=px(x + 15), y=y + 9))
    return picture


def scaling(title: str, points: Sequence[tuple[float, float]], unit: str) -> Element:
    """Return a curve over the number of devices, which is on a logarithmic axis."""
    points = sorted(points)
    height, left, bottom = 190, 54, 26
    low, high = points[0][0], points[-1][0]
    top = max(y for _, y in points)
    x_axis = Axis(low, high, log=low < high, begin=left + 14, end=WIDTH - 24)
    y_axis = Axis(0.0, top * 1.1 or 1.0, log=False, begin=height - bottom, end=12)
    words = "; ".join(f"{x:,.0f} devices: {y:.4g} {unit}" for x, y in points)
    picture = frame(title, words, WIDTH, height)
    for value in y_axis.ticks(4):
        place = y_axis.place(value)
        line = element("line", class_="grid", x1=left, x2=WIDTH - 10, y1=px(place), y2=px(place))
        label = element("text", tick(value), x=left - 6, y=px(place + 4), text_anchor="end")
        picture.extend((line, label))
    placed = [f"{px(x_axis.place(x))} {px(y_axis.place(y))}" for x, y in points]
    picture.append(element("path", class_="line s0", d="M" + "L".join(placed)))
    for x, y in points:
        across, up = px(x_axis.place(x)), px(y_axis.place(y))
        about = element("title", f"{x:,.0f} devices: {y:.4g} {unit}")
        picture.append(element("circle", about, class_="dot", cx=across, cy=up, r=4))
        mark = element("text", f"{x:,.0f}", x=across, y=height - 8, text_anchor="middle")
        picture.append(mark)
    return picture


def timeline(ranks: Sequence[Sequence[tuple[int, str, float, float]]]) -> tuple[Element, float]:
    """Return the first actions of each pipeline rank, and the seconds drawn."""
    ends = sorted(end for actions in ranks for *_, end in actions)
    until = ends[min(_MOST_ACTIONS, len(ends)) - 1]
    row = 16
    height = len(ranks) * row + 24
    axis = Axis(0.0, until, log=False, begin=52, end=_WIDE - 8)
    words = f"{len(ranks)} ranks, the first {until:.3g} s; forward dark, backward light."
    picture = frame("the pipeline's order", words, _WIDE, height)
    for number, actions in enumerate(ranks):
        y = number * row
        picture.append(element("text", f"rank {number}", x=4, y=y + 12))
        for style, group in _paths(actions, until):
            lines = "".join(
                f"M{px(axis.place(a))} {y + 2}H{px(max(axis.place(b) - 0.6, axis.place(a) + 0.2))}"
                f"v{row - 3}H{px(axis.place(a))}z"
                for a, b in group
            )
            picture.append(element("path", class_=style, d=lines))
    for value in axis.ticks(6):
        place = px(axis.place(value))
        picture.append(element("text", tick(value), x=place, y=height - 6, text_anchor="middle"))
    return picture, until


def _paths(
    actions: Sequence[tuple[int, str, float, float]], until: float
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    for style, kinds in (("k0", "F"), ("k4", "BI"), ("k2", "W")):
        found = [(a, min(b, until)) for _, kind, a, b in actions if kind in kinds and a < until]
        if found:
            yield style, found


def distribution(title: str, days: Sequence[float]) -> Element:
    """Return a histogram of the finishing days, with the quantiles 5 %, 50 % and 95 %."""
    height, bottom = 190, 26
    low, high = min(days), max(days)
    width = (high - low) / _BINS or 1.0
    counts = [0] * _BINS
    for day in days:
        counts[min(int((day - low) / width), _BINS - 1)] += 1
    x_axis = Axis(low, low + width * _BINS, log=False, begin=20, end=WIDTH - 20)
    y_axis = Axis(0.0, float(max(counts)), log=False, begin=height - bottom, end=16)
    ordered = sorted(days)
    marks = [ordered[min(int(len(days) * share), len(days) - 1)] for share in (0.05, 0.5, 0.95)]
    words = f"between {low:.3g} and {high:.3g} days; 5 %, 50 %, 95 %: " + ", ".join(
        f"{mark:.3g}" for mark in marks
    )
    picture = frame(title, words, WIDTH, height)
    for number, count in enumerate(counts):
        x, end = (x_axis.place(low + width * n) for n in (number, number + 1))
        y = y_axis.place(count)
        about = element("title", f"from {low + width * number:.4g} days: {count} campaigns")
        picture.append(
            element(
                "rect", about, class_="part k0", x=px(x), y=px(y), width=px(end - x),
                height=px(height - bottom - y),
            )
        )  # fmt: skip
    for mark in marks:
        place = px(x_axis.place(mark))
        picture.append(
            element("line", class_="limit", x1=place, x2=place, y1=14, y2=height - bottom)
        )
        picture.append(element("text", f"{mark:.3g}", x=place, y=11, text_anchor="middle"))
    for value in x_axis.ticks(5):
        place = px(x_axis.place(value))
        picture.append(element("text", tick(value), x=place, y=height - 8, text_anchor="middle"))
    return picture
