"""Draw a sweep: the share of each setting, and the objective over each setting's values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

from atom.errors import shown
from atom.watch import chart
from atom.watch.axis import Axis, px, tick
from atom.watch.importance import Importance, is_number
from atom.watch.markup import element
from atom.watch.sweep import Sweep, cell

STYLE = """
.chart .bar { fill: var(--c0); } .chart .dot { fill: var(--c0); fill-opacity: .55; }
.chart .best { fill: var(--c1); }
"""

_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 12, 12, 26
_ROW = 22
_LOG_FROM = 30.0
_MOST_NAMED = 8


def shares(sweep: Sweep) -> Element:
    """Return a bar for each setting: its share of the variance."""
    found = sweep.importances
    height = _ROW * len(found) + 8
    words = "; ".join(f"{one.setting} {_share(one)}" for one in found)
    picture = chart.frame(f"share of the variance of {sweep.objective}", words, chart.WIDTH, height)
    for number, one in enumerate(found):
        y = 4 + _ROW * number
        picture.append(element("text", one.setting, class_="strong", x=4, y=y + 15))
        width = (one.share or 0.0) * (chart.WIDTH - 280)
        picture.append(
            element("rect", class_="bar", x=220, y=y + 4, width=px(width), height=_ROW - 8)
        )
        picture.append(element("text", _share(one), x=px(226 + width), y=y + 15))
    return picture


def scatter(sweep: Sweep, key: str) -> Element:
    """Return a dot for each run: its objective over the value of a setting."""
    values = sweep.values(key)
    results = [trial.value for trial in sweep.counted if trial.value is not None]
    x_axis, ticks = _across(values)
    low, high = min(results), max(results)
    room = (high - low) * 0.08 or abs(high) * 0.08 or 1.0
    y_axis = Axis(low - room, high + room, log=False, begin=chart.HEIGHT - _BOTTOM, end=_TOP)
    words = "; ".join(
        f"{shown(value)}: {cell(result)}" for value, result in zip(values, results, strict=True)
    )
    picture = chart.frame(f"{sweep.objective} over {key}", words, chart.WIDTH, chart.HEIGHT)
    for value in y_axis.ticks(4):
        y = px(y_axis.place(value))
        right = chart.WIDTH - _RIGHT
        picture.append(element("line", class_="grid", x1=_LEFT, x2=right, y1=y, y2=y))
        label = element("text", tick(value), x=_LEFT - 6, y=px(float(y) + 4), text_anchor="end")
        picture.append(label)
    for place, words in ticks:
        mark = element("text", words, x=px(place), y=chart.HEIGHT - 8, text_anchor="middle")
        picture.append(mark)
    for number, (value, result) in reversed(list(enumerate(zip(values, results, strict=True)))):
        style = "best" if number == 0 else "dot"
        x, y = px(x_axis(value)), px(y_axis.place(result))
        about = element("title", f"run {sweep.counted[number].name}: {cell(result)}")
        picture.append(element("circle", about, class_=style, cx=x, cy=y, r=5))
    return picture


def picture(sweep: Sweep) -> Element:
    """Return all pictures of a sweep in one."""
    panels = list(panels_of(sweep))
    heights = [float(panel.get("viewBox", "0 0 0 0").split()[-1]) for _, panel in panels]
    height = sum(heights) + 24 * len(panels)
    found = element(
        "svg",
        element("title", sweep.title),
        element("style", chart.STYLE, STYLE, chart.PAPER),
        element("rect", class_="paper", width=chart.WIDTH, height=px(height)),
        class_="chart",
        viewBox=f"0 0 {chart.WIDTH} {px(height)}",
        width=chart.WIDTH * 2,
        height=px(height * 2),
    )
    y = 0.0
    for (title, panel), tall in zip(panels, heights, strict=True):
        found.append(element("text", title, class_="strong", x=12, y=px(y + 15)))
        for name, place in (("y", y + 24), ("width", chart.WIDTH), ("height", tall)):
            panel.set(name, px(place))
        found.append(panel)
        y += tall + 24
    return found


def panels_of(sweep: Sweep) -> Iterator[tuple[str, Element]]:
    """Yield the title and the picture of each panel."""
    if sweep.importances:
        yield f"share of the variance of {sweep.objective}", shares(sweep)
    for one in sweep.importances:
        yield f"{sweep.objective} over {one.setting}", scatter(sweep, one.setting)


def _across(values: Sequence[Any]) -> tuple[Any, list[tuple[float, str]]]:
    """Return a function that places a value, and the ticks: place and words."""
    begin, end = _LEFT + 14, chart.WIDTH - _RIGHT - 14
    if all(map(is_number, values)):
        low, high = min(values), max(values)
        log = low > 0 and high / low > _LOG_FROM
        axis = Axis(low, high, log=log, begin=begin, end=end)
        marks = sorted(set(values))
        if len(marks) > _MOST_NAMED:
            marks = [low, high] if log and not axis.ticks(4) else axis.ticks(4)
        return axis.place, [(axis.place(value), tick(value)) for value in marks]
    names = list(dict.fromkeys(shown(value) for value in values))
    step = (end - begin) / max(len(names) - 1, 1)
    places = {name: begin + step * number for number, name in enumerate(names)}
    named = [(place, name[:12]) for name, place in places.items()]
    return lambda value: places[shown(value)], named[:: -(-len(named) // _MOST_NAMED)]


def _share(one: Importance) -> str:
    return "too few runs" if one.share is None else f"{one.share:.0%}"
