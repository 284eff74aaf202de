"""Curves of the report are drawn, whatever their values."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from atom.watch import chart
from atom.watch.chart import Mark, Series

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e&\"'"


def test_a_spike_is_drawn_however_many_points_there_are() -> None:
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 9.0)
    drawn = chart.chart("loss", [Series("loss", points)])
    (path,) = drawn.iter("path")
    assert len(path.get("d", "")) < 30_000
    heights = [float(pair.split()[1]) for pair in path.get("d", "")[1:].split("L")]
    assert min(heights) < chart.HEIGHT / 4 < max(heights) - 50


@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan],
        [math.inf, -math.inf],
        [0.0],
        [1e308, -1e308],
        [5e-324, 1e308],
        [1.0, math.nan, 2.0],
        [-3.0, -3.0],
    ],
    ids=str,
)
def test_every_value_can_be_drawn(values: list[float]) -> None:
    drawn = chart.chart(
        HOSTILE, [Series(HOSTILE, list(enumerate(values, 1)))], marks=[Mark(1, "restart", HOSTILE)]
    )
    text = ElementTree.tostring(drawn, encoding="unicode")
    assert "<script" not in text
    assert "\x1b" not in text
    for one in drawn.iter():
        for name in ("d", "x", "y", "x1", "y1"):
            assert "nan" not in one.get(name, "")
            assert "inf" not in one.get(name, "")
    crosses = [one for one in drawn.iter("path") if one.get("class") == "gap"]
    assert len(crosses) == sum(not math.isfinite(value) for value in values)
