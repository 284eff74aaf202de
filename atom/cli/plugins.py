"""``atom plugins``: list the installed components and their packages, and why a plugin is broken.

``atom plugins lock FILE`` records digests of their files: see :mod:`atom.registry.lock`.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from atom.cli import Parser
from atom.io.json_data import dumps
from atom.plugin import KINDS
from atom.registry.host import Host
from atom.registry.installed import Plugin, installed
from atom.registry.trust import Trust

_KINDS = [declaration.kind for declaration in KINDS]
_HEADER = ("KIND", "NAME", "PACKAGE", "VERSION", "STATUS", "SUMMARY, OR REASON")
_NARROWEST = 30
"""Minimum width of a readable summary, in columns."""


@dataclass(frozen=True)
class Row:
    """A component, or a plugin without known components, for which ``kind`` is None."""

    kind: str | None
    name: str
    package: str
    version: str
    status: str
    reason: str | None
    summary: str | None


def parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        "atom plugins",
        "List the installed plugins and their components. `atom plugins lock FILE` writes a lock: "
        "the digests of their files.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, for programs")
    parser.add_argument("--kind", choices=_KINDS, help="list the components of one kind")
    return parser


def lock_parser() -> Parser:
    """Return the parser of the arguments of ``atom plugins lock``."""
    parser = Parser(
        "atom plugins lock",
        "Write a lock: the version of every installed plugin and the digest of each of its files. "
        "`atom train plugins.locked=FILE` then refuses plugins that differ.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the JSON file to write")
    return parser


SUBCOMMANDS = {"lock": lock_parser}
"""Name -> the parser of its arguments, for completion."""


def main(arguments: list[str]) -> int:
    """Run ``atom plugins``; return exit code 0 even if plugins are broken."""
    if arguments[:1] == ["lock"]:
        return _lock(lock_parser().parse_args(arguments[1:]).file)
    options = parser().parse_args(arguments)
    host = Host.load()
    for warning in host.warnings:
        print(f"atom: {warning}", file=sys.stderr)
    every = rows(host)
    shown = [row for row in every if options.kind in (None, row.kind)]
    if options.json:
        print(dumps([asdict(row) for row in shown], indent=2))
        return 0
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if shown:
        print(table(shown, columns))
    else:
        print(f"no plugin offers any {options.kind}" if options.kind else "there are no plugins")
    broken = sum(row.status == "broken" for row in every) if options.kind else 0
    if broken:
        print(f"\nbroken plugins of all kinds: {broken} (`atom plugins` shows the reasons)")
    return 0


def _lock(path: Path) -> int:
    from atom.registry import lock as plugin_lock

    trusted, _ = Trust.gather().divided(installed())
    packages = plugin_lock.write(path, trusted)["plugins"]
    count = sum(len(entry["files"]) for entry in packages.values())
    print(f"{path}: {len(packages)} packages, {count} files")
    return 0


def rows(host: Host) -> list[Row]:
    """Return one row per component, sorted by kind and name; then one per plugin without
    components.
    """
    components = sorted(
        host.components, key=lambda c: (_KINDS.index(c.kind), c.name, c.plugin.package)
    )
    found = [
        Row(c.kind, c.name, c.plugin.package, c.plugin.version, "ok", None, c.summary)
        for c in components
    ]
    shown = {component.plugin for component in components}
    found += [_without_components(plugin) for plugin in host.plugins if plugin not in shown]
    return found + [
        Row(None, p.entry_point, p.package, p.version, "blocked", p.reason, None)
        for p in host.blocked
    ]


def _without_components(plugin: Plugin) -> Row:
    name, package, version = plugin.entry_point, plugin.package, plugin.version
    if plugin.reason is not None:
        return Row(None, name, package, version, "broken", plugin.reason, None)
    groups = sorted(group.name for group in plugin.conf.iterdir()) if plugin.conf else []
    summary = f"config groups: {', '.join(groups)}" if groups else "declares nothing"
    return Row(None, name, package, version, "ok", None, summary)


def table(rows: list[Row], columns: int | None) -> str:
    """Return ``rows`` in aligned columns.

    Args:
        rows: at least one row.
        columns: the width to fit by wrapping the last column; None for one line per row.
    """
    cells = [_HEADER]
    for row in rows:
        text = row.reason or row.summary or ""
        cells.append((row.kind or "-", row.name, row.package, row.version, row.status, text))
    wrap = partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    indent = sum(widths) + 2 * len(widths)
    if columns is not None and columns - indent < _NARROWEST:
        indent = 4  # no room beside the other columns: the summary gets its own line
    lines = []
    for *short, text in cells:
        start = "  ".join(cell.ljust(width) for cell, width in zip(short, widths, strict=True))
        if columns is None:
            lines.append(f"{start}  {text}")
            continue
        # Do not break words: some are meant to be copied, such as `pip install …`.
        wrapped = wrap(text, max(columns - indent, 1)) or [""]
        if indent == 4:
            lines.append(start.rstrip())
        else:
            lines.append(f"{start}  {wrapped.pop(0)}")
        lines += [" " * indent + line for line in wrapped]
    return "\n".join(line.rstrip() for line in lines)
