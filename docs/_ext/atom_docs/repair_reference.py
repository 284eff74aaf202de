"""``{repairs}``: the register of repairs of other libraries."""

from __future__ import annotations

from collections.abc import Callable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atom.compose import repairs as of_hydra
from atom.io.repair import Repair
from atom.testing.repairs import of_plugins
from atom.titan.compat import register
from atom_docs.nodes import definitions

GROUPS: dict[str, Callable[[], tuple[Repair, ...]]] = {
    "boot": lambda: register.AT_BOOT,
    "later": lambda: register.LATER,
    "hydra": lambda: of_hydra.REPAIRS,
    "plugins": of_plugins,
}
"""Argument -> the repairs to list."""


class Repairs(SphinxDirective):
    """A list of repairs; the argument is one of :data:`GROUPS`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        entries = [
            (repair.target.replace(":", "."), repair.version, _text(repair))
            for repair in GROUPS[self.arguments[0]]()
        ]
        return [definitions(entries)]


def _text(repair: Repair) -> str:
    where = " (on a CPU)" if repair.devices == ("cpu",) else ""
    items = [
        f"applied {repair.applied}{where}: `{repair.where}`",
        f"upstream: {repair.upstream}",
        f"remove when: {repair.remove_when}",
    ]
    if repair.unprobed:
        items.append(f"not probed: {repair.unprobed}")
    return f"{repair.reason}\n" + "\n".join(f"- {item}" for item in items)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("repairs", Repairs)
    return {"parallel_read_safe": True}
