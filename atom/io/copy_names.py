"""Name the copies of objects: each URL has its own path, and none lies outside of the folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote, unquote

from atom.io.files import is_regular, read_bytes
from atom.io.urls import Url

_LONGEST_NAME = 255
_SPARED = " !#$&'()+,-.=@[]^_`{}~"
"""Characters of an object's name that stay as they are in the name of its copy."""

_FOLDER = "%"
"""End of a folder's name: an object can have the name of a folder, and a folder can have none."""

_MOST_TOLD = 1 << 20
_ENDED = re.compile(rf"{_FOLDER}(?![0-9A-F]{{2}})")
_QUERY = re.compile(rf"%3F([^/\s]*){_FOLDER}/([^/\s:]*)")
_NAME = re.compile(rf"[A-Za-z0-9/%{re.escape(_SPARED)}]*")
_QUOTED = re.compile(r"(?:%[0-9A-F]{2})+")


def path_of(url: Url) -> Path:
    """Return the path of the copy of an object, within the folder of all copies."""
    *folders, name = url.parts()
    return _path(url, folders) / _file_name(name)


def folder_of(url: Url) -> Path:
    """Return the folder of the copies of a folder's objects, within the folder of all copies."""
    return _path(url, url.parts())


def told_beside(path: Path) -> Path:
    """Return the file that says what a copy is of."""
    return path.with_name(f".{path.name}")


def is_copy(path: Path, size: int, version: str) -> bool:
    """Return whether a copy of a version of an object is there."""
    try:
        told = read_bytes(told_beside(path), most=_MOST_TOLD).decode()
        return is_regular(path) and path.stat().st_size == size and told == version
    except (OSError, ValueError):
        return False


def readable(text: str) -> str:
    """Return a message that begins with the path of a copy, with its URL instead."""
    end = _NAME.match(text).end()  # type: ignore[union-attr]
    path = _ENDED.sub("", _QUERY.sub(r"\2?\1", text[:end]))
    scheme, _, name = path.partition("/")
    return f"{scheme}://{_QUOTED.sub(_unquoted, name)}{text[end:]}"


def _path(url: Url, folders: list[str]) -> Path:
    queries = [f"?{url.query}"] if url.query else []
    return Path(*(f"{_file_name(part)}{_FOLDER}" for part in (url.scheme, *folders, *queries)))


def _file_name(part: str) -> str:
    """Return a part of an object's name as the name of a file; not longer than one can be."""
    name = quote(part, safe=_SPARED, errors="surrogatepass")
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    if len(name) < _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return f"{digest}{name[-(_LONGEST_NAME - 60) :]}"


def _unquoted(found: re.Match[str]) -> str:
    text = unquote(found[0], errors="replace")
    return text if text.isprintable() and "�" not in text else found[0]
