"""``stdlib_chat``: conversations about the functions and classes of Python's standard library.

Each public function, class and method with a documentation string is a question and an answer. The
answer is the first sentence of the string. The form of the question, and whether a second one about
the module follows, are chosen by a digest of the name, so that every machine with the same Python
makes the same conversations.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import platform
import re
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from atom.errors import UserError
from atom.io.files import make_folder, read_bytes, read_text, write_text
from atom.plugin import Contents, Document, SourceContext
from atom_datasets.config import StdlibChat
from atom_datasets.stdlib import files
from atom_datasets.text_files import TextFile

RECIPE = 1
"""Version of how the conversations are made."""

QUESTIONS = (
    "What does `{name}` do?",
    "What is `{name}` for?",
    "Explain `{name}` in one sentence.",
    "In Python, what does {name} do?",
)
MODULE = ("Which module is it in?", "It is in `{module}`.")
"""A second question and its answer."""

WITH_MODULE = 4
"""One of so many conversations has the second question."""

_WITHOUT = frozenset({"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip"})
_SHORTEST = 15
_SENTENCE = re.compile(r"(?<=[a-z0-9)'\"`])(?<!e\.g)(?<!i\.e)(?<!\bvs)\.(?=\s|$)")
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def source(config: StdlibChat, context: SourceContext) -> Conversations:
    """Return the source that ``config`` describes; it keeps its conversations in the cache."""
    return Conversations(context.cache, config.longest)


@dataclass(frozen=True)
class LibraryRecords:
    """Records made from the documentation of Python's library; a subclass makes them.

    Args:
        cache: the folder to keep conversations in.
        longest: characters of an answer.
    """

    dataset: ClassVar[str]
    """Name of the dataset."""

    fewest: ClassVar[int] = 1
    """Number of records without which there is no dataset."""

    cache: Path
    longest: int

    def check(self) -> str:
        """Return a digest of the records.

        Raises:
            UserError: this Python has no source files of its library.
        """
        if len(self.documents()) < self.fewest:
            raise UserError(
                "there is no source of the standard library with documentation",
                valid="a Python that comes with it, or another dataset",
                key="dataset.name",
                value=self.dataset,
            )
        texts = (document.text for document in self.documents())
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()

    def contents(self) -> Contents:
        """Return the number of records, their licence and their origin."""
        return Contents(
            documents=len(self.documents()),
            licence="PSF-2.0",
            origin="documentation strings of Python's standard library",
        )

    @abstractmethod
    def documents(self) -> list[Document]:
        """Return the records, by name."""


class Conversations(LibraryRecords):
    """The conversations, a record each with ``messages``; its id is the name of the definition."""

    dataset = "stdlib_chat"

    def documents(self) -> list[Document]:
        """Return the conversations, by name."""
        return _documents(self.cache, self.longest)


@lru_cache(maxsize=1)
def _documents(cache: Path, longest: int) -> list[Document]:
    found = files()
    sizes = [(file.name, file.size) for file in found]
    recipe = [RECIPE, longest, platform.python_version(), sizes]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    kept = cache / f"{digest}.jsonl"
    try:
        lines = read_text(kept).splitlines()
    except (OSError, ValueError):
        named = sorted({name: made for file in found for name, made in _of(file, longest)}.items())
        lines = [json.dumps([name, record]) for name, record in named]
        make_folder(cache)
        write_text(kept, "\n".join(lines))
    made = []
    for line in lines:
        name, record = json.loads(line)
        made.append(Document(json.dumps(record), name, record=record))
    return made


def _of(file: TextFile, longest: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names and records of a file's definitions."""
    parts = file.name.removesuffix(".py").removesuffix("/__init__").split("/")
    if not file.name.endswith(".py") or _WITHOUT & set(parts) or any(p[0] == "_" for p in parts):
        return
    module = ".".join(parts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(read_bytes(file.path))
    except (SyntaxError, ValueError):
        return
    for name, definition in _definitions(tree, module):
        if (answer := sentence(ast.get_docstring(definition), longest)) is not None:
            yield name, record(name, module, answer)


def _definitions(tree: ast.AST, above: str) -> Iterator[tuple[str, _Definition]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            name = f"{above}.{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, name)


def sentence(docstring: str | None, longest: int) -> str | None:
    """Return the first sentence of a documentation string; None if it has none to answer with."""
    if docstring is None:
        return None
    paragraph = inspect.cleandoc(docstring).split("\n\n")[0]
    text = " ".join(paragraph.split())
    text = _SENTENCE.split(text)[0].strip().rstrip(":;,. ")
    if not _SHORTEST <= len(text) <= longest or " " not in text or "->" in text:
        return None
    return f"{text[0].upper()}{text[1:]}."


def record(name: str, module: str, answer: str) -> dict[str, Any]:
    """Return the conversation about a definition."""
    chosen = hashlib.blake2b(name.encode(), digest_size=8).digest()
    turns = [(QUESTIONS[chosen[0] % len(QUESTIONS)].format(name=name), answer)]
    if chosen[1] % WITH_MODULE == 0:
        turns.append((MODULE[0], MODULE[1].format(module=module)))
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    return {"messages": messages}
