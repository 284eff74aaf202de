"""``{command-reference}``: the help of every ``atom`` command, from its own parser."""

from __future__ import annotations

import importlib

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atom.cli import COMMANDS
from atom_docs import nodes as pieces
from atom_docs.nodes import output, section


class CommandReference(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for command in commands():
            part = section(f"atom {command}", f"atom-{command}")
            part += output(pieces.said(*command.split(), "--help"))
            found.append(part)
        return found


def commands() -> list[str]:
    """Return the commands with their sub-commands: ``train``, ``plugins``, ``plugins lock``, …"""
    found = []
    for name, (module, _) in COMMANDS.items():
        found.append(name)
        below = getattr(importlib.import_module(module), "SUBCOMMANDS", {})
        found += [f"{name} {each}" for each in below]
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True}
