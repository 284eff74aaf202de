"""Numbers as people read them: counts, durations, curves, time left."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atom.io.numbers import clock, human, sparkline

# ---------------------------------------------------------------------------- words

BLOCKS, SIGNS = "▁▂▃▄▅▆▇█", ".:-=+*#@"


@given(st.lists(st.floats(), max_size=300), st.integers(1, 80), st.booleans())
def test_a_curve_fits_and_shows_what_is_finite(
    values: list[float], columns: int, ascii_only: bool
) -> None:
    curve = sparkline(values, columns, ascii_only=ascii_only)
    levels, gap = (SIGNS, "x") if ascii_only else (BLOCKS, "×")
    assert len(curve) == min(len(values), columns)
    assert set(curve) <= {*levels, gap}
    if len(values) <= columns:
        assert [sign == gap for sign in curve] == [not math.isfinite(value) for value in values]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=60))
def test_a_curve_keeps_the_order_of_values(values: list[float]) -> None:
    levels = [BLOCKS.index(sign) for sign in sparkline(values, 60)]
    by_value = [level for _, level in sorted(zip(values, levels, strict=True))]
    assert by_value == sorted(by_value)
    if max(values) / 2 > min(values) / 2:
        assert (by_value[0], by_value[-1]) == (0, 7)
    else:
        assert len(set(levels)) == 1


def test_a_long_fall_stays_a_fall() -> None:
    curve = sparkline([10 * math.exp(-step / 3000) for step in range(10_000)], 60)
    assert len(curve) == 60
    assert list(curve) == sorted(curve, reverse=True)
    assert (curve[0], curve[-1]) == ("█", "▁")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0 K"),
        (6_123_456, "6.1 M"),
        (99_949_999, "99.9 M"),
        (99_950_000, "100 M"),
        (999_499_999, "999 M"),
        (999_500_000, "1.0 B"),
        (8_030_261_248, "8.0 B"),
        (405e9, "405 B"),
        (1.5e18, "1,500,000 T"),
        (math.nan, "nan"),
    ],
)
def test_counts_are_short(number: float, words: str) -> None:
    assert human(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0:00"),
        (-3, "0:00"),
        (31.4, "0:31"),
        (59.6, "1:00"),
        (3599.9, "1:00:00"),
        (3723, "1:02:03"),
        (100 * 3600, "4 d 4 h"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_durations_are_clocks(seconds: float, words: str) -> None:
    assert clock(seconds) == words
