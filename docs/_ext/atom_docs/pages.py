"""Parse a page: its code blocks, the commands and transcripts in them, its headings.

There are two kinds of code blocks. ``sh`` holds commands. ``console`` holds a transcript: commands
after ``$``, and their output, where ``…`` matches anything. A block with a ``:caption:`` is a file
that exists when the page's commands run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("plugins/*/README.md"), *ROOT.glob("[RC]*.md")])

_DIRECTIVE = re.compile(r"\{(?P<name>[\w-]+)\}\s*(?P<argument>.*)")


@dataclass(frozen=True)
class Block:
    """A fenced code block. ``file`` is the caption if the block is a file."""

    line: int
    language: str
    text: str
    file: str | None = None


@dataclass(frozen=True)
class Step:
    """A command of a transcript, and its output."""

    command: str
    output: str

    @property
    def is_mistake(self) -> bool:
        return self.output.startswith("atom: ")


def name_of(page: Path) -> str:
    """Return the path of a page relative to the repository."""
    return str(page.relative_to(ROOT))


def tokens(page: Path) -> list[Token]:
    """Return the Markdown tokens of a page."""
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path) -> list[Block]:
    """Return the code blocks, including directives."""
    return [_block(token) for token in tokens(page) if token.type == "fence"]


def _block(token: Token) -> Block:
    assert token.map is not None
    directive = _DIRECTIVE.fullmatch(token.info.strip())
    if directive is None:
        return Block(token.map[0] + 1, token.info.strip(), token.content)
    text, options = token.content, {}
    while match := re.match(r":([\w-]+):[ ]*(.*)\n", text):
        options[match[1]] = match[2]
        text = text[match.end() :]
    language = directive["argument"] if directive["name"] == "code-block" else token.info
    return Block(token.map[0] + 1, language, text.lstrip("\n"), options.get("caption"))


def inline(page: Path) -> Iterator[Token]:
    """Yield the inline tokens of paragraphs, tables and headings."""
    for token in tokens(page):
        yield from token.children or ()


def commands(page: Path) -> list[str]:
    """Return the ``atom …`` commands of a page that are not part of a runnable transcript."""
    found = []
    for block in blocks(page):
        if block.language in ("sh", "bash"):
            for line in block.text.replace("\\\n", " ").splitlines():
                found += atom_commands(line)
    return found


def atom_commands(line: str) -> list[str]:
    """Return the ``atom …`` commands of a shell line, including those started by torchrun."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    ended: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|"):
            ended.append([])
        else:
            ended[-1].append(word)
    return [
        shlex.join(words[words.index("atom") :])
        for words in ended
        if "atom" in words and words[0] != "cd"
    ]


def transcript(page: Path) -> list[Step]:
    """Return the steps of a page's transcripts."""
    found = []
    for block in blocks(page):
        if block.language == "console" or block.text.startswith("$ "):
            for part in re.split(r"^\$ ", block.text.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append(Step(command, output.strip()))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub and MyST generate for headings."""
    found = set()
    parsed = tokens(page)
    for heading, content in pairwise(parsed):
        if heading.type == "heading_open":
            words = re.sub(r"[^\w\s-]", "", content.content.lower())
            found.add(re.sub(r"\s", "-", words.strip()))
    return found


def write_files(page: Path, folder: Path) -> None:
    """Write the files of a page into ``folder``."""
    for block in blocks(page):
        if block.file is not None:
            place = folder / block.file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(block.text)


def matches(printed: str, expected: str) -> bool:
    """Return whether a command printed the expected text, except for white space and ``…``."""
    words = [re.escape(word).replace("…", ".*") for word in expected.split()]
    pattern = r"\s*" + r"\s+".join(words) + r"\s*"
    # The omitted text between two words can be empty.
    pattern = pattern.replace(r"\s+.*\s+", r"\s+(.*\s+)?")
    return re.fullmatch(pattern, printed, re.DOTALL) is not None
