"""Draw the values that callbacks have logged: curves, and heat maps over layers and steps."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from atom.io.numbers import decimal
from atom.watch.chart import Series, chart
from atom.watch.heat_map import heat_map
from atom.watch.markup import element
from atom.watch.record import Record

_MOST = 40
"""Maximum number of figures."""


def callbacks(record: Record) -> list[Element]:
    """Return one figure per value; values ``KIND/ROW`` of one kind share a heat map."""
    figures = list(_figures(record))
    if not figures:
        return []
    found = [element("div", *figures[:_MOST], class_="curves")]
    words = ["Across: steps. Red: a value that is not finite."]
    if len(figures) > _MOST:
        words.append(f"{len(figures) - _MOST:,} more are in metrics.jsonl.")
    return [*found, element("p", " ".join(words), class_="faint")]


def _figures(record: Record) -> Iterator[Element]:
    for title, values in _values(record).items():
        if len(values) > 1:
            picture, caption = heat_map(title, values, _shown)
        else:
            ((row, points),) = values.items()
            caption = f"{title}/{row}" if row else title
            picture = chart(caption, [Series("these steps", list(points.items()))], show=_shown)
        yield element("figure", element("figcaption", caption), picture)


def _values(record: Record) -> dict[str, dict[str, dict[int, float]]]:
    """Return the values: ``CALLBACK: KIND`` -> row -> step -> value; the row of ``loss`` is ""."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in record.rows:
        for name, values in (row.callbacks or {}).items():
            for key, value in values.items():
                kind, _, rest = key.partition("/")
                found.setdefault(f"{name}: {kind}", {}).setdefault(rest, {})[row.step] = value
    return found


def _shown(number: float) -> str:
    return decimal(number, 4)
