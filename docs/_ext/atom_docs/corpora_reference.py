"""``{corpora}``: the options for public corpora, from their config files.

The first comment of a file is ``NAME: TEXT``; the next two are ``size: TEXT`` and ``access: TEXT``.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atom.plugin import Dataset
from atom.registry.host import Host
from atom_docs.signature_reference import table

HEADER = ("option", "corpus", "size", "licence", "access")


class Corpora(SphinxDirective):
    """The options of the group ``dataset`` that select a corpus instead of a component."""

    def run(self) -> list[nodes.Node]:
        host = Host.load()
        kind = Dataset.section
        components = {c.name for c in host.components if c.declaration.section == kind}
        folders = [plugin.conf / kind for plugin in host.plugins if plugin.conf is not None]
        files = sorted(file for folder in folders for file in folder.glob("*.yaml"))
        rows = [_row(file) for file in files if file.stem not in components]
        return [table(HEADER, rows, literal=1)]


def _row(file: Path) -> tuple[str, ...]:
    text = file.read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines()[:3]]
    size, access = (line.partition(": ")[2] for line in lines[1:])
    licence = yaml.safe_load(text).get("licence") or "those of its sources"
    return (file.stem, lines[0], size, licence, access)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("corpora", Corpora)
    return {"parallel_read_safe": True}
