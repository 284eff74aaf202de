"""Write a page about a sweep: its ranking, and pictures of the settings that matter."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from atom.watch import sweep_picture
from atom.watch.markup import element
from atom.watch.report import framed
from atom.watch.report_tables import table
from atom.watch.sweep import Sweep, importance_rows, rows


def page(sweep: Sweep) -> str:
    """Return the page."""
    name = "/".join(sweep.folder.absolute().parts[-2:])
    settings: list[Element] = []
    if sweep.importances:
        figures = (
            element("figure", element("figcaption", title), panel)
            for title, panel in sweep_picture.panels_of(sweep)
        )
        settings = [table(*importance_rows(sweep)), element("div", *figures, class_="curves")]
    notes = [element("p", note, class_="faint") for note in sweep.notes]
    header = [element("h1", name), element("p", sweep.title)]
    sections = [
        ("Runs", "runs", [table(*rows(sweep))]),
        ("Settings that matter", "settings", settings),
        ("Notes", "notes", notes),
    ]
    return framed(f"{name}: a sweep of ATOM", header, sections, style=sweep_picture.STYLE)
