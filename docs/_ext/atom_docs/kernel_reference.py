"""``{kernel-operations}``, ``{kernel-functions}``, ``{kernel-explanation}``: the operations that
have kernels, their functions, and the choice of a kernel."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from atom.kernels.operations import OPERATIONS
from atom_docs import nodes as pieces
from atom_docs.nodes import definitions, output


class KernelOperations(SphinxDirective):
    """Every operation, the node that its kernels replace, and what it computes."""

    def run(self) -> list[nodes.Node]:
        return [
            definitions(
                [
                    (
                        name,
                        operation.place.replace(":", ".") + (".Config" if operation.node else "()"),
                        operation.summary,
                    )
                    for name, operation in OPERATIONS.items()
                ]
            )
        ]


class KernelFunctions(SphinxDirective):
    """Every contract of a function: its operation, and its signature."""

    def run(self) -> list[nodes.Node]:
        from atom.titan.contracts.functions import FUNCTIONS

        found = definitions(
            [
                (name, f"of {function.operation}", function.signature)
                for name, function in FUNCTIONS.items()
            ]
        )
        for term in found.findall(nodes.term):
            # Operations have the same names, and can be on the same page.
            term["ids"] = [f"function-{identifier}" for identifier in term["ids"]]
        return [found]


class KernelExplanation(SphinxDirective):
    """The output of ``atom kernels explain`` with the directive's arguments."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        command = f"kernels explain {self.arguments[0]}"
        return [output(f"$ atom {command}\n{pieces.said(*command.split())}")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("kernel-operations", KernelOperations)
    app.add_directive("kernel-functions", KernelFunctions)
    app.add_directive("kernel-explanation", KernelExplanation)
    return {"parallel_read_safe": True}
