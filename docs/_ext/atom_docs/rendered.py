"""Write generated tables into the Markdown pages, for readers without Sphinx: ``make tables``.

A page holds a table between two comments; the first names the directive that generates it::

    <!-- {conformance-checks} dataset -->
    …
    <!-- end of what `make tables` writes -->

Sphinx shows the directive instead. torchtitan's own texts are not committed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from atom_docs.command_reference import CommandReference
from atom_docs.config_reference import ConfigReference
from atom_docs.conformance_reference import ConformanceChecks, Kinds
from atom_docs.corpora_reference import Corpora
from atom_docs.engine_reference import Engine
from atom_docs.kernel_reference import KernelExplanation, KernelFunctions, KernelOperations
from atom_docs.pages import DOCS
from atom_docs.repair_reference import Repairs
from atom_docs.signature_reference import Operations, Signatures

END = "<!-- end of what `make tables` writes -->"
REGION = re.compile(
    r"^(?P<indent> *)<!-- \{(?P<name>[\w-]+)\}(?: (?P<argument>[^\n]+))? -->\n"
    rf"(?P<body>.*?)^ *{re.escape(END)}\n",
    re.MULTILINE | re.DOTALL,
)

DIRECTIVES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "command-reference": (CommandReference, ()),
    "config-reference": (ConfigReference, ("key", "type and default", "meaning")),
    "conformance-checks": (ConformanceChecks, ("check", "", "what it holds")),
    "corpora": (Corpora, ()),
    "engine": (Engine, ("part of torchtitan", "test", "key of a run, or why there is none")),
    "kernel-explanation": (KernelExplanation, ()),
    "kernel-functions": (KernelFunctions, ("function", "operation", "called with")),
    "kernel-operations": (KernelOperations, ("operation", "takes the place of", "computes")),
    "kinds": (Kinds, ("kind", "a run says", "what it is")),
    "operations": (Operations, ()),
    "repairs": (Repairs, ("replaced", "written for", "why")),
    "signatures": (Signatures, ()),
}
"""Name -> the directive, and the header of its definition lists."""


def rendered(page: str) -> str:
    """Return a page's text with regenerated tables."""

    def region(match: re.Match[str]) -> str:
        name, argument, indent = match["name"], match["argument"] or "", match["indent"]
        headings = re.findall(r"^(#+) ", page[: match.start()], re.MULTILINE)
        lines = markdown(name, argument, level=len(headings[-1]) + 1).splitlines()
        first = f"<!-- {{{name}}} {argument}".rstrip() + " -->"
        body = [first, "", *lines, "", END]
        return "".join(f"{indent}{line}".rstrip() + "\n" for line in body)

    return REGION.sub(region, page)


def directives(page: str) -> str:
    """Return a page's text with directives instead of tables."""

    def region(match: re.Match[str]) -> str:
        indent, argument = match["indent"], match["argument"] or ""
        return f"{indent}```{{{match['name']}}} {argument}\n{indent}```\n"

    return REGION.sub(region, page)


def markdown(name: str, argument: str, *, level: int) -> str:
    """Return the output of a directive as Markdown.

    Args:
        name: name of the directive.
        argument: argument of the directive.
        level: level of its headings.
    """
    directive, header = DIRECTIVES[name]
    made = directive.__new__(directive)
    made.arguments = [argument]
    if (name, argument) == ("config-reference", "torchtitan"):
        header = header[:2]
    return "\n\n".join(_blocks(made.run(), header, level))


def _blocks(found: Iterable[nodes.Node], header: tuple[str, ...], level: int) -> Iterable[str]:
    for node in found:
        match node:
            case nodes.section():
                yield f"{'#' * level} {_inline(node[0])}"
                yield from _blocks(node.children[1:], header, level + 1)
            case nodes.definition_list():
                yield _definitions(node, header)
            case nodes.table():
                rows = [
                    [_inline(entry) for entry in row.children] for row in node.findall(nodes.row)
                ]
                yield _table(rows[0], rows[1:])
            case nodes.literal_block():
                command, _, output = node.astext().partition("\n")
                if command.startswith("$ "):
                    yield f"```sh\n{command.removeprefix('$ ')}\n```"
                yield f"```text\n{output if command.startswith('$ ') else node.astext()}\n```"
            case _:
                yield _inline(node)


def _definitions(found: nodes.definition_list, header: tuple[str, ...]) -> str:
    rows = []
    for item in found.children:
        term, definition = item.children  # type: ignore[attr-defined]
        name, *rest = term.children
        classifier = "".join(_inline(part) for part in rest).strip()
        rows.append([_inline(name), classifier, _inline(definition)][: len(header)])
    return _table(list(header), rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell for cell in line)} |" for line in lines)


def _inline(node: nodes.Node) -> str:
    """Return a node on one line, with code marked and all other markup escaped."""
    if isinstance(node, nodes.Text):
        return re.sub(r"([\\`*<|]|(?<!\w)_|_(?!\w))", r"\\\1", node.astext())
    if isinstance(node, nodes.literal):
        return f"`{node.astext()}`".replace("|", r"\|")
    inner = "".join(map(_inline, node.children))
    if isinstance(node, nodes.emphasis):
        return inner
    if isinstance(node, nodes.paragraph | nodes.list_item):
        bullet = "• " if isinstance(node, nodes.list_item) else ""
        return f"{bullet}{inner.strip()} "
    return inner.strip() if isinstance(node, nodes.definition | nodes.entry) else inner


def main() -> None:
    """Regenerate the tables of every page."""
    for path in sorted(DOCS.rglob("*.md")):
        before = path.read_text()
        if (after := rendered(before)) != before:
            path.write_text(after)
            print(path)


def setup(app: Sphinx) -> dict[str, bool]:
    def read(_app: Sphinx, _name: str, source: list[str]) -> None:
        source[0] = directives(source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    main()
