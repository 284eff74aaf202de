"""Write a report of a run: one self-contained page of HTML, without network access or scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import atom
from atom.io.numbers import clock, decimal, human
from atom.watch import chart, heat_map, mesh_picture, report_plan
from atom.watch import report_callbacks as measured
from atom.watch import report_curves as curves
from atom.watch import report_evals as evaluated
from atom.watch import report_tables as tables
from atom.watch.markup import element, html
from atom.watch.record import Record
from atom.watch.report_history import changed

_STYLE = Path(__file__).with_name("report.css")
_NO_NETWORK = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(record: Record) -> str:
    """Return the report."""
    style = heat_map.STYLE + mesh_picture.STYLE
    title = f"{record.name}: a run of ATOM"
    return framed(title, list(_header(record)), list(_sections(record)), style=style)


def framed(
    title: str,
    header: Sequence[Element],
    sections: Sequence[tuple[str, str, list[Element]]],
    *,
    style: str,
) -> str:
    """Return a page.

    Args:
        title: its title.
        header: what is above the sections.
        sections: title, anchor and content of each section; one without content is left out.
        style: the style sheet of its pictures, beside that of charts.
    """
    parts = [(heading, anchor, found) for heading, anchor, found in sections if found]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_NO_NETWORK),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", _STYLE.read_text() + chart.STYLE + style),
    )
    links = (element("a", heading, href=f"#{anchor}") for heading, anchor, _ in parts)
    body = element(
        "body",
        element("header", *header, element("nav", *links, aria_label="On this page")),
        element(
            "main",
            *(
                element("section", element("h2", heading, id=f"{anchor}"), *found)
                for heading, anchor, found in parts
            ),
        ),
        element("footer", element("p", f"Made by ATOM {atom.__version__}.", class_="faint")),
    )
    return html(element("html", head, body, lang="en"))


def _sections(record: Record) -> Iterator[tuple[str, str, list[Element]]]:
    yield "Curves", "curves", curves.curves(record)
    yield "Evaluations", "evaluations", evaluated.evaluations(record)
    yield "Callbacks", "callbacks", measured.callbacks(record)
    yield "What happened", "events", tables.happened(record)
    yield "Step time", "profile", tables.profiled(record)
    yield "Planned and measured", "planned", report_plan.compared(record)
    yield "Layout", "layout", _layout(record)
    yield "Kernels", "kernels", tables.kernels(record)
    yield "Data", "data", tables.data(record)
    yield "Settings", "settings", [*changed(record), *tables.settings(record)]
    yield "Environment", "environment", tables.environment(record)


def _header(record: Record) -> Iterator[Element]:
    found, run = record.status, record.run
    yield element("h1", record.name)
    reason = f": {found.reason}" if found.reason else ""
    ranks = run.resolved.world_size if run.resolved else None
    where = (
        f" on {ranks:,} rank{'s' * (ranks > 1)} ({run.resolved.device})"
        if ranks and run.resolved
        else ""
    )
    yield element(
        "p",
        element("span", found.state, class_=f"state {found.state}"),
        f"{reason} · {run.architecture.name} on {run.dataset.name}{where}",
    )
    for problem in record.problems:
        yield element("p", f"Omitted, because it is damaged: {problem}.", class_="faint")
    yield element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in _facts(record)
        ),
        class_="facts",
    )


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    found, rows = record.status, record.rows
    yield "steps", f"{found.step:,}" + (f" of {found.steps:,}" if found.steps else "")
    if rows:
        at = "" if rows[-1].step == found.step else f" (step {rows[-1].step:,})"
        yield "loss", f"{decimal(rows[0].loss, 3)} → {decimal(rows[-1].loss, 3)}{at}"
    if found.tokens_seen is not None:
        yield "tokens seen", human(found.tokens_seen)
    if found.tokens_per_second is not None:
        yield "tokens per second", f"{found.tokens_per_second:,.0f}"
    if rows and rows[-1].mfu is not None:
        yield "MFU", f"{rows[-1].mfu:.1%}"
    if found.wall is not None:
        yield "time", clock(found.wall)
    if found.goodput is not None:
        yield "goodput", f"{found.goodput:.0%}"
    again = f", {found.steps_lost:,} steps repeated" if found.steps_lost else ""
    yield "restarts", f"{found.restarts:,}{again}"
    saved = "none" if found.checkpoint is None else f"step {found.checkpoint:,}"
    yield "checkpoint", saved


def _layout(record: Record) -> list[Element]:
    resolved = record.run.resolved
    if resolved is None:
        return []
    picture = element(
        "figure",
        element("div", mesh_picture.mesh(resolved.degrees), class_="scroll"),
        element("figcaption", mesh_picture.caption(resolved.degrees)),
    )
    return [picture, tables.degrees(record, resolved)]
