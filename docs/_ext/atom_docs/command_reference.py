"""``{command-reference}``: what every ``atom`` command says of itself, from its own parser."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atom.cli import COMMANDS
from atom_docs.nodes import output, section


class CommandReference(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for command in commands():
            part = section(f"atom {command}", f"atom-{command}")
            part += output(help_of(command))
            found.append(part)
        return found


def commands() -> list[str]:
    """Return the commands with their sub-commands: ``train``, ``plugins``, ``plugins lock``, …"""
    found = []
    for name, (module, _) in COMMANDS.items():
        found.append(name)
        parser = getattr(importlib.import_module(module), "parser", None)
        if parser is not None:
            found += [f"{name} {below}" for below in _below(parser())]
    return found


def help_of(command: str) -> str:
    """Return what ``atom COMMAND --help`` prints.

    Raises:
        RuntimeError: it fails.
    """
    result = subprocess.run(
        [sys.executable, "-m", "atom", *command.split(), "--help"],
        env=os.environ | {"COLUMNS": "88"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"atom {command} --help: {result.stderr}")
    return result.stdout.strip()


def _below(parser: argparse.ArgumentParser) -> list[str]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += [name, *(f"{name} {deeper}" for deeper in _below(below))]
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True}
