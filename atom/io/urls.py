"""Parse URLs of object stores, web servers and the Hugging Face Hub, beside paths on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from atom.errors import UserError

WEB = ("https", "http")
SCHEMES = ("s3", "gs", *WEB, "hf")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HUB = re.compile(r"datasets/[^/]+/[^/]+(/.*)?|(?!spaces/|buckets/|datasets/)[^/]+/[^/]+(/.*)?")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}|arn:.*")
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, order=True)
class Url:
    """A URL of an object, or of a folder of objects."""

    text: str

    @property
    def scheme(self) -> str:
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self._path.rstrip("/").rpartition("/")[2]

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which lists no folders."""
        return self.scheme in WEB

    @property
    def is_pattern(self) -> bool:
        """Whether it is a glob pattern. The question mark of a web address is none."""
        return not self.is_web and _MAGIC.search(self._path) is not None

    @property
    def query(self) -> str:
        """The query of a web address; empty if it has none."""
        return self._split[2]

    def beside(self, name: str) -> Url:
        """Return the URL of an object in the same folder, with the same query."""
        head, question, query = self._split
        return Url(f"{head.rstrip('/').rpartition('/')[0]}/{name}{question}{query}")

    def parts(self) -> list[str]:
        """Return the parts of its path, beginning with the bucket or the server."""
        return self._path.strip("/").split("/")

    def __truediv__(self, name: str) -> Url:
        head, question, query = self._split
        return Url(f"{head.rstrip('/')}/{name}{question}{query}")

    def __str__(self) -> str:
        return self.text

    @property
    def _split(self) -> tuple[str, str, str]:
        return self.text.partition("?") if self.is_web else (self.text, "", "")

    @property
    def _path(self) -> str:
        return self._split[0].partition("://")[2]


Place: TypeAlias = Path | Url
"""A file or folder on disk, or a URL."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL of any scheme, valid or not."""
    return _URL.match(text) is not None


def place(text: str, key: str | None = None) -> Place:
    """Return the URL or the path that a text names.

    Raises:
        UserError: as for :func:`parse`.
    """
    return parse(text, key) if is_url(text) else Path(text).expanduser()


def parse(text: str, key: str | None = None) -> Url:
    """Return the URL that a text names.

    Args:
        text: a URL.
        key: the key of the text in a run, for errors.

    Raises:
        UserError: the scheme is unknown, or the rest names nothing.
    """
    found = _URL.match(text)
    scheme, rest = (found[1].lower(), found[2]) if found else ("", text)
    if scheme not in SCHEMES:
        raise UserError(
            f"there is no scheme {scheme}://",
            valid=f"a path, or a URL of {', '.join(f'{name}://' for name in SCHEMES)}",
            key=key,
            value=text,
        )
    # fsspec reads "::" as a chain of filesystems.
    if "::" in rest or not rest.isprintable():
        raise UserError(
            "holds :: or a character that cannot be printed",
            valid="a URL of one object or folder",
            key=key,
            value=text,
        )
    parts = (rest.partition("?")[0] if scheme in WEB else rest).strip("/").split("/")
    if rest.startswith("/") or not parts[0] or any(part in ("", ".", "..") for part in parts):
        raise UserError(
            "has an empty part, or a part . or ..",
            valid=f"{scheme}://{'SERVER' if scheme in WEB else 'BUCKET'}/PATH",
            key=key,
            value=text,
        )
    if scheme in ("s3", "gs") and not _BUCKET.fullmatch(parts[0]):
        raise UserError(
            f"no bucket can have the name {parts[0]}",
            valid=f"{scheme}://BUCKET/PATH, with letters, digits, dots and dashes in the bucket",
            key=key,
            value=text,
        )
    if scheme in WEB and "@" in urlsplit(f"{scheme}://{rest}").netloc:
        raise UserError(
            "holds a user's name",
            valid="a URL without it, because run.yaml is for others to read",
            key=key,
            value=text,
        )
    if scheme == "hf" and not _HUB.fullmatch(rest.strip("/")):
        raise UserError(
            "names no repository",
            valid="hf://datasets/OWNER/NAME/PATH, or hf://OWNER/NAME/PATH for a model",
            key=key,
            value=text,
        )
    return Url(f"{scheme}://{rest}")
