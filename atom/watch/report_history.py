"""Write the section of a report on settings that changed during the run."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element

from atom.errors import shown
from atom.run_dir import history
from atom.watch.markup import Child, element
from atom.watch.record import Record
from atom.watch.report_tables import table


def changed(record: Record) -> list[Element]:
    """Return, for each setting that changed, the values and the steps trained with them."""
    periods, settings = record.course
    if not settings:
        return []
    rows: list[Sequence[Child]] = [
        (element("code", key), *map(shown, values)) for key, values in settings.items()
    ]
    words = (
        "These settings changed during the run. Below are all settings of the last start; those "
        f"of earlier starts are in {history.FOLDER}/."
    )
    heads = ("setting", *map(str, periods))
    return [table(heads, rows), element("p", words, class_="faint")]
