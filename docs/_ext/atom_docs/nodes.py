"""Build docutils nodes for the reference directives."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import tempfile

from docutils import nodes


def said(*arguments: str) -> str:
    """Return the output of ``atom …``, which a fork of this process runs with its imports.

    Raises:
        RuntimeError: the command fails.
    """
    from atom import cli
    from atom.titan.boot import boot

    boot("cpu")  # before anything imports torchtitan
    importlib.import_module("atom.titan.trainer_config")
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                os.environ["COLUMNS"] = "88"
                os.environ.pop("TRITON_INTERPRET", None)
                for number, name, file in ((1, "stdout", out), (2, "stderr", errors)):
                    os.dup2(file.fileno(), number)
                    setattr(sys, name, os.fdopen(number, "w", closefd=False))
                code = cli.main(list(arguments))
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        for file in (out, errors):
            file.seek(0)
        if status:
            raise RuntimeError(f"atom {' '.join(arguments)}: {errors.read()}")
        return out.read().strip()


def section(title: str, name: str) -> nodes.section:
    """Return a section with a heading in code type and the link target ``name``."""
    identifier = nodes.make_id(name)
    heading = nodes.title("", "", nodes.literal(title, title))
    return nodes.section("", heading, ids=[identifier], names=[name])


def paragraphs(text: str) -> list[nodes.Node]:
    """Return plain text as paragraphs and lists; only ``code`` is interpreted as markup.

    The text comes from third parties, so its markup must not break the build.
    """
    found: list[nodes.Node] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lead, *items = re.split(r"^\s*[-*] ", block, flags=re.MULTILINE)
        if lead.strip():
            found.append(nodes.paragraph("", "", *_inline(lead)))
        if items:
            paragraphs = [nodes.paragraph("", "", *_inline(item)) for item in items]
            found.append(nodes.bullet_list("", *[nodes.list_item("", p) for p in paragraphs]))
    return found


def definitions(entries: list[tuple[str, str, str]]) -> nodes.definition_list:
    """Return a definition list; each entry is a name, a classifier (type or default),
    and a text.
    """
    items = []
    for name, classifier, text in entries:
        term = nodes.term("", "", nodes.literal(name, name))
        term["ids"] = [nodes.make_id(name)]
        if classifier:
            term += nodes.Text("  ")
            term += nodes.emphasis(classifier, classifier)
        items.append(nodes.definition_list_item("", term, nodes.definition("", *paragraphs(text))))
    return nodes.definition_list("", *items)


def output(text: str, language: str = "text") -> nodes.literal_block:
    """Return a block of output."""
    return nodes.literal_block(text, text, language=language)


def _inline(text: str) -> list[nodes.Node]:
    words = " ".join(text.split())
    parts = re.split(r"(?::[\w:]+:)?`{1,2}~?([^`]+)`{1,2}", words)
    return [
        nodes.literal(part, part) if number % 2 else nodes.Text(part)
        for number, part in enumerate(parts)
        if part
    ]
