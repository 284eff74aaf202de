"""``{engine}``: the parts of torchtitan, with the keys that use them."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atom.titan.boot import boot
from atom_docs.nodes import definitions


class Engine(SphinxDirective):
    """A list of parts of the engine: ``modules`` or ``configs``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        boot("cpu")  # before anything imports torchtitan
        from atom.titan import engine_parts

        parts = engine_parts.PARTS if self.arguments[0] == "modules" else engine_parts.configs()
        return [definitions([(part.name, part.test, part.key) for part in parts])]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("engine", Engine)
    return {"parallel_read_safe": True}
