"""``{signatures}`` and ``{operations}``: how torchtitan calls the modules, from the modules."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atom.kernels.operations import OPERATIONS


class Signatures(SphinxDirective):
    """The ``forward`` arguments of each module class named in the directive's argument."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        _use_cpu()
        rows: list[tuple[str, ...]] = []
        for path in self.arguments[0].split():
            module, _, name = path.rpartition(".")
            owner = getattr(importlib.import_module(module), name)
            rows.append((name, forward(owner)))
        return [table(("module", "forward"), rows)]


class Operations(SphinxDirective):
    """The operations that the conformance kit knows, and the nodes that their kernels replace."""

    def run(self) -> list[nodes.Node]:
        _use_cpu()
        from atom.titan.contracts.contract import tree
        from atom.titan.contracts.operations import contract_of
        from atom.titan.contracts.sizes import Sizes

        rows: list[tuple[str, ...]] = []
        for name in OPERATIONS:
            if (contract := contract_of(name)) is None:
                continue
            owner = type(contract.node(tree(contract.family, Sizes())))._owner
            path = f"{owner.__module__}.{owner.__qualname__}.Config"
            called = "__call__" if not hasattr(owner, "forward") else "forward"
            rows.append((name, path, forward(owner, called)))
        return [table(("operation", "target", "called with"), rows)]


def forward(owner: type, method: str = "forward") -> str:
    """Return the arguments of a module's ``forward`` without their types: ``(x, *, mask=None)``."""
    signature = inspect.signature(getattr(owner, method))
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(bare))


def _use_cpu() -> None:
    from atom.titan.boot import boot

    boot("cpu")


def table(
    header: tuple[str, ...], rows: list[tuple[str, ...]], *, literal: int | None = None
) -> nodes.table:
    """Return a table; the first ``literal`` columns are code, by default all."""

    def entry(place: int, text: str) -> nodes.entry:
        code = literal is None or place < literal
        return nodes.entry(
            "", nodes.paragraph("", "", nodes.literal(text, text) if code else nodes.Text(text))
        )

    columns: list[Any] = [nodes.colspec(colwidth=1) for _ in header]
    head = nodes.row("", *[nodes.entry("", nodes.paragraph("", name)) for name in header])
    body = [nodes.row("", *[entry(place, c) for place, c in enumerate(row)]) for row in rows]
    group = nodes.tgroup(
        "", *columns, nodes.thead("", head), nodes.tbody("", *body), cols=len(header)
    )
    return nodes.table("", group)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("signatures", Signatures)
    app.add_directive("operations", Operations)
    return {"parallel_read_safe": True}
