"""Draw what callbacks have logged: curves, heat maps over layers and steps, and histograms."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from atom.io.numbers import decimal
from atom.run_dir.histograms import Histograms
from atom.run_dir.metrics import StepMetrics
from atom.watch.chart import Series, chart
from atom.watch.heat_map import Columns, heat_map
from atom.watch.markup import element
from atom.watch.record import Record

_MOST = 40
"""Maximum number of figures."""


def callbacks(record: Record) -> list[Element]:
    """Return one figure per value; values ``KIND/ROW`` of one kind share a heat map.

    Histograms of one kind share one, too: those of the first and of the last step with any.
    """
    figures = [*_figures(record), *_histograms(record)]
    if not figures:
        return []
    found = [element("div", *figures[:_MOST], class_="curves")]
    words = ["Across: steps, or bins of a histogram. Red: a value that is not finite."]
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


def _histograms(record: Record) -> Iterator[Element]:
    """Yield a heat map of each kind of histograms: rows are layers, columns are bins."""
    steps: dict[tuple[str, str], list[StepMetrics]] = {}
    for row in record.rows:
        for callback, histograms in (row.histograms or {}).items():
            for kind in dict.fromkeys(name.partition("/")[0] for name in histograms.counts):
                steps.setdefault((callback, kind), []).append(row)
    for (callback, kind), rows in steps.items():
        for drawn in rows[:1] + rows[1:][-1:]:
            title = f"{callback}: {kind}, histograms of step {drawn.step:,}"
            yield _histogram(title, kind, (drawn.histograms or {})[callback])


def _histogram(title: str, kind: str, histograms: Histograms) -> Element:
    edges = histograms.edges
    shares = {}
    for name, histogram in histograms.each():
        of, _, layer = name.partition("/")
        total = sum(histogram.counts)
        if of == kind and total:
            counts = enumerate(histogram.counts)
            shares[layer] = {number: count / total for number, count in counts if count}
    columns = Columns(
        label=lambda number: f"{edges[number]:.1g}",
        place=lambda number: f"{edges[number]:.3g} to {edges[number + 1]:.3g}",
        plural="bins",
    )
    picture, caption = heat_map(title, shares, _share, columns)
    return element("figure", element("figcaption", caption), picture)


def _share(number: float) -> str:
    return f"{number:.2g}"


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
