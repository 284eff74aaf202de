"""Read untrusted YAML as data: plain types, with limits that suit a configuration.

``yaml.safe_load`` creates no objects, but a page of aliases can still exhaust memory, and a number
of a million digits or deep nesting ends in an error that names no file.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from atom.errors import UserError

BYTES = 256 * 1024
NODES = 10_000
DEPTH = 40
SCALAR = 16 * 1024
"""Limits of one file: bytes, values with every alias expanded, nesting depth, and characters per
value. ATOM's own largest configuration has 60 lines."""

INT64 = 2**63

_NOT_DECIMAL = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""Numbers of YAML 1.1 that look decimal, or like a time, and are to base 8 or 60."""

_PLAIN = ("str", "int", "float", "bool", "null", "seq", "map")
_TAGS = {f"tag:yaml.org,2002:{name}" for name in _PLAIN} | {"!", None}
_EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str, origin: str) -> Any:
    """Parse ``text``.

    Args:
        text: a YAML document.
        origin: the source file, for errors.

    Raises:
        UserError: it is not YAML, or not plain data of a configuration's size.
    """
    check(text, origin)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise unreadable(origin, error) from None


def text_of(path: Path, *, most: int = BYTES, what: str = "a configuration") -> str:
    """Return the text of a file, after a check of its size.

    Args:
        path: the file.
        most: maximum size in bytes.
        what: a name for the content, for errors.

    Raises:
        UserError: it is not a regular file, not text, or too large.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe would block until a process writes to it.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UserError(f"{path} is not a regular file")
        content = file.read(most + 1)
    if len(content) > most:
        raise _too_large(str(path), most, what)
    try:
        return content.decode("utf-8-sig")  # some editors write a byte-order mark
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8 text", valid="the same text, saved as UTF-8"
        ) from None


def _too_large(origin: str, most: int = BYTES, what: str = "a configuration") -> UserError:
    return UserError(f"{origin} is larger than {most // 1024} KiB, the limit of {what}")


def check(text: str, origin: str) -> None:
    """Refuse a document that is not plain data, without constructing it.

    Raises:
        UserError: as for :func:`load`.
    """
    if len(text) > BYTES:
        raise _too_large(origin)
    try:
        _walk(text, origin)
    except yaml.YAMLError as error:
        raise unreadable(origin, error) from None


def _walk(text: str, origin: str) -> None:
    sizes: dict[str, int] = {}  # expanded size of each anchor's node, in values
    # Anchor and size so far of each open node; the first entry is the document.
    opened: list[tuple[str | None, int]] = [(None, 0)]
    keys = _Keys()
    for event in yaml.parse(text, Loader=_EVENTS):
        mark = event.start_mark
        where = f"{origin}, line {mark.line + 1}" if mark is not None else origin
        tag = getattr(event, "tag", None)
        if tag not in _TAGS:
            raise UserError(f"{where}: the tag {tag} is refused: a configuration is data")
        keys.follow(event, where)
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
            if len(opened) > DEPTH:
                raise UserError(f"{where}: more than {DEPTH} levels of nesting")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            if len(event.value) > SCALAR:
                raise UserError(f"{where}: a value of more than {SCALAR:,} characters")
            if event.implicit[0] and _NOT_DECIMAL.fullmatch(event.value):
                read = yaml.safe_load(event.value)
                raise UserError(
                    f"{where}: YAML reads {event.value} as {read}",
                    valid=f"{read}, or '{event.value}' for the text",
                )
        elif isinstance(event, yaml.AliasEvent):
            # The anchor's node is still open, so it contains itself.
            if event.anchor not in sizes:
                raise UserError(f"{where}: the alias *{event.anchor} has no anchor before it")
            anchor, size = None, sizes[event.anchor]
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, total = opened.pop()
        opened.append((outer, total + size))
        if total + size > NODES:
            raise UserError(f"{where}: more than {NODES:,} values, with aliases expanded")


class _Keys:
    """The keys of the mappings that are open while a document is read."""

    def __init__(self) -> None:
        # For each open collection: its keys so far, or None in a list; whether a key comes next.
        self._open: list[tuple[set[str] | None, bool]] = []

    def follow(self, event: yaml.Event, where: str) -> None:
        """Follow the next event of the document.

        Raises:
            UserError: a mapping repeats a key, and a loader would drop the first value.
        """
        if isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
        elif isinstance(event, yaml.NodeEvent):
            if self._open:
                keys, is_key = self._open[-1]
                if keys is not None and is_key and isinstance(event, yaml.ScalarEvent):
                    if event.value in keys:
                        raise UserError(f"{where}: the key {event.value} is there twice")
                    keys.add(event.value)
                self._open[-1] = keys, not is_key
            if isinstance(event, yaml.CollectionStartEvent):
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                self._open.append((set() if is_mapping else None, True))


def refuse_objects(data: Any, path: str = "") -> None:
    """Refuse content that is not data of a run: reserved keys, and values of other than plain
    types.

    Args:
        data: dictionaries, lists and values, without cycles.
        path: the key that holds it.

    Raises:
        UserError: names the key.
    """
    if isinstance(data, dict):
        for key, value in data.items():
            name = f"{path}.{key}" if path else str(key)
            if not isinstance(key, str):
                raise UserError("a key must be text", key=name)
            if key.startswith("_") and key.endswith("_") and len(key) > 2:
                raise UserError(
                    "a configuration names what plugins have registered and cannot instantiate "
                    "anything else; remove this key",
                    key=name,
                )
            refuse_objects(value, name)
    elif isinstance(data, list | tuple):
        for number, value in enumerate(data):
            refuse_objects(value, f"{path}.{number}")
    elif isinstance(data, int) and not -INT64 <= data < INT64:
        raise UserError("must be a number of at most 64 bits", key=path)
    elif data is not None and not isinstance(data, str | int | float | bool):
        raise UserError(f"must be plain data, not {type(data).__name__}", key=path)


def unreadable(origin: str, error: Exception) -> UserError:
    """Return the error for a file that a parser rejected."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark is not None else ""
    # After the first line, OmegaConf describes its own objects.
    words = getattr(error, "problem", None) or str(error).strip().partition("\n")[0]
    if "integer string conversion" in words:  # Python's message describes its own limit
        words = "a number has too many digits"
    if "no viable alternative at input '${" in words:  # OmegaConf's parser
        words = r"${ begins a reference to another key; valid: ${KEY}, or \${ for the characters"
    full_key = getattr(error, "full_key", None)
    key = f", {full_key}" if full_key else ""
    return UserError(f"{origin}{where}{key} is not valid YAML: {words}")
