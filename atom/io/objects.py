"""List, read and write objects by URL; repeat requests that fail.

fsspec, and the package that it has for each scheme, sends the requests.
"""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from atom.errors import UserError, one_line
from atom.io import environment
from atom.io.urls import Url

T = TypeVar("T")

PART = 8 << 20
"""Bytes of a large object that one request reads."""

SECONDS = 300.0
"""Default time that failing requests are repeated for."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 20.0
_CONNECT_SECONDS, _READ_SECONDS = 10, 60

_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}
"""Scheme -> the package that it needs, and the extra of ATOM that installs it."""

_VERSIONS = ("ETag", "etag", "generation", "blob_id", "LastModified", "Last-Modified", "updated")
"""Fields of fsspec's ``info`` that change when an object is replaced, the best first."""

_INFO = {"hf": {"expand_info": True}}
"""Arguments of fsspec's ``info`` that make it say the version."""

_DENIED = re.compile(r"NoCredentials|DefaultCredentials|CredentialRetrieval|Gated|Unauthorized")
"""Names of exceptions of the stores' packages that say that access needs credentials."""

_OWN_MISTAKES = (AttributeError, NameError, TypeError, AssertionError, NotImplementedError)


class ObjectError(OSError):
    """Raised if a store does not answer, or not as it must; ``str`` is a sentence."""

    def __init__(self, url: Url, problem: str) -> None:
        super().__init__(errno.EIO, problem, str(url))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


@dataclass(frozen=True, order=True)
class Object:
    """An object as it was found.

    Attributes:
        url: its URL.
        size: its size in bytes.
        version: changes when the object is replaced; empty if the store does not say.
    """

    url: Url
    size: int
    version: str


# ---------------------------------------------------------------------------- finding


def find(url: Url) -> Object | None:
    """Return the object at a URL, or None if there is none.

    Raises:
        ObjectError: the store does not answer.
    """

    def look() -> Object | None:
        system = _system(url.scheme)
        system.invalidate_cache()
        try:
            found = system.info(_name(url), **_INFO.get(url.scheme, {}))
        except FileNotFoundError as error:
            # fsspec says so of a web server that does not answer, too.
            if isinstance(error.__cause__, Exception) and not _is_missing(error.__cause__):
                raise error.__cause__ from None
            return None
        return _object(url, found) if found["type"] == "file" else None

    return _tried(look, url, "cannot be found")


def below(url: Url) -> list[Object]:
    """Return all objects in a folder and its subfolders, by name; none if there is no folder.

    Raises:
        ObjectError: the store does not answer, or lists no folders.
    """
    if url.is_web:
        raise ObjectError(url, "a web server does not list folders; name each file")

    def look() -> list[Object]:
        system = _system(url.scheme)
        root = _name(url).rstrip("/")
        try:
            found = system.find(root, detail=True)
        except FileNotFoundError:
            return []
        return _objects(url, (info for name, info in found.items() if name != root))

    return _tried(look, url, "cannot be listed")


def matching(pattern: Url) -> list[Object]:
    """Return the objects that match a glob pattern, by name.

    Raises:
        ObjectError: the store does not answer.
    """

    def look() -> list[Object]:
        found = _system(pattern.scheme).glob(_name(pattern), detail=True)
        return _objects(pattern, found.values())

    return _tried(look, pattern, "cannot be listed")


# ---------------------------------------------------------------------------- reading


def read(found: Object, begin: int, end: int) -> bytes:
    """Return bytes ``begin`` to ``end`` - 1 of an object.

    Raises:
        ObjectError: the store does not answer, or sends fewer bytes, again and again.
    """
    if begin == end:
        return b""

    def look() -> bytes:
        system = _system(found.url.scheme)
        try:
            content: bytes = system.cat_file(_name(found.url), start=begin, end=end)
        except FileNotFoundError:
            raise ObjectError(found.url, "has been removed meanwhile") from None
        if len(content) == found.size > end - begin:  # a server that reads no ranges
            content = content[begin:end]
        if len(content) != end - begin:
            raise EOFError(
                f"it sends {len(content):,} bytes of {begin:,} to {end:,}, and says that the "
                f"object has {found.size:,}"
            )
        return content

    return _tried(look, found.url, "cannot be read")


def read_whole(url: Url, most: int) -> bytes:
    """Return the content of a small object.

    Raises:
        FileNotFoundError: there is no such object.
        ObjectError: it has more than ``most`` bytes, or the store does not answer.
    """
    found = find(url)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(url))
    if found.size > most:
        raise ObjectError(url, f"has more than {most >> 20:,} MiB")
    return b"".join(parts(found))


def parts(found: Object) -> Iterable[bytes]:
    """Yield the content of an object, part by part."""
    for begin in range(0, found.size, PART):
        yield read(found, begin, min(begin + PART, found.size))


def check_unchanged(found: Object) -> None:
    """Refuse an object that has been replaced since it was found.

    Raises:
        ObjectError: it has.
    """
    if find(found.url) != found:
        raise ObjectError(found.url, "has changed under the run")


# ---------------------------------------------------------------------------- writing


def write(url: Url, content: bytes) -> None:
    """Write an object; it appears when it is complete.

    Raises:
        ObjectError: the store does not take it.
    """
    _tried(lambda: _system(url.scheme).pipe_file(_name(url), content), url, "cannot be written")


def upload(path: Path, url: Url) -> None:
    """Copy a file into an object, and check its size there.

    Raises:
        ObjectError: the store does not take it.
    """
    size = path.stat().st_size

    def send() -> None:
        system = _system(url.scheme)
        system.put_file(str(path), _name(url))
        if (there := system.info(_name(url))["size"]) != size:
            raise EOFError(f"it has taken {there:,} of {size:,} bytes")

    _tried(send, url, "cannot be written")


def remove(urls: Iterable[Url]) -> None:
    """Remove objects; those that do not exist are passed over.

    Raises:
        ObjectError: the store does not do it.
    """
    for url in urls:

        def do(url: Url = url) -> None:
            try:
                _system(url.scheme).rm_file(_name(url))
            except FileNotFoundError:
                return

        _tried(do, url, "cannot be removed")


# ---------------------------------------------------------------------------- requests


def _system(scheme: str) -> Any:
    """Return fsspec's filesystem of a scheme; each process has its own."""
    return _made(scheme, os.getpid(), scheme in _anonymous)


_anonymous: set[str] = set()
"""Schemes without credentials on this machine: public buckets can be read."""


@cache
def _made(scheme: str, process: int, anonymous: bool) -> Any:  # noqa: ARG001 (a child has its own)
    import fsspec  # type: ignore[import-untyped]

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        seconds = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS}
        options["config_kwargs"] = seconds | {"retries": {"max_attempts": 0}}
        options |= {"anon": True} if anonymous else {}
    if scheme in ("https", "http"):
        import aiohttp

        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS
        )
        options["client_kwargs"] = {"timeout": limits, "trust_env": True}
    if scheme == "hf":
        options["endpoint"] = os.environ.get("HF_ENDPOINT")
    try:
        system = fsspec.filesystem(scheme, **options)
    except ImportError:
        package, extra = _PACKAGES.get(scheme, (scheme, scheme))
        raise UserError(
            f"{scheme}:// needs the package {package}",
            valid=f"pip install 'atom-train[{extra}]', or a path",
        ) from None
    if scheme == "s3":
        system.retries = 1  # requests are repeated here
    return system


def _name(url: Url) -> str:
    """Return the name of an object as its filesystem spells it."""
    return url.text if url.is_web else url.text.partition("://")[2]


def _is_missing(error: Exception) -> bool:
    """Return whether a web server's answer says that there is no such object."""
    return getattr(error, "status", None) in (404, 410) or "NotFound" in type(error).__name__


def _object(url: Url, info: dict[str, Any]) -> Object:
    size = info.get("size")
    if size is None:
        raise ObjectError(url, "its server does not say how large it is")
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    return Object(url, int(size), version)


def _objects(url: Url, found: Iterable[dict[str, Any]]) -> list[Object]:
    scheme = url.scheme
    files = (info for info in found if info["type"] == "file" and not info["name"].endswith("/"))
    return sorted(_object(Url(f"{scheme}://{info['name']}"), info) for info in files)


def _tried(action: Callable[[], T], url: Url, problem: str) -> T:
    """Return what ``action`` returns; repeat it, with growing pauses, while it fails."""
    limit = seconds()
    begun, pause, tries = time.monotonic(), _FIRST_PAUSE, 0
    while True:
        tries += 1
        try:
            return action()
        except (UserError, ObjectError, *_OWN_MISTAKES):
            raise
        except Exception as error:
            if type(error).__name__ == "NoCredentialsError" and url.scheme not in _anonymous:
                _anonymous.add(url.scheme)
                continue
            status = getattr(error, "status", None)
            denied = isinstance(error, PermissionError) or status in (401, 403)
            if denied or _DENIED.search(type(error).__name__):
                raise ObjectError(url, f"{problem}: {_denial(url, error)}") from None
            past = time.monotonic() - begun
            if past + pause > limit:
                raise ObjectError(
                    url,
                    f"{problem}: {_reason(error)} (given up after {tries} tries in {past:.0f} s)",
                ) from None
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _LONGEST_PAUSE)


def seconds() -> float:
    """Return how long failing requests are repeated.

    Raises:
        UserError: the variable in the environment is no such number.
    """
    return environment.number(environment.OBJECT_SECONDS, SECONDS)


def _denial(url: Url, error: Exception) -> str:
    how = {
        "s3": "credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile of the "
        "AWS tools; a public bucket needs none",
        "gs": "`gcloud auth application-default login`; a public bucket needs none",
        "hf": "HF_TOKEN or `hf auth login`, and the licence accepted on the Hub",
    }.get(url.scheme, "a URL that needs no login")
    return f"access is denied ({_reason(error)}); valid: {how}"


def _reason(error: Exception) -> str:
    """Return in words why a request failed."""
    name = type(error).__name__
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return "its server does not answer in time"
    if "Connect" in name or isinstance(error, ConnectionError):
        return "there is no connection to its server"
    status = getattr(error, "status", None) or getattr(
        getattr(error, "response", None), "status_code", None
    )
    if isinstance(status, int):
        return f"its server answers {status}"
    said = error.strerror if isinstance(error, OSError) else None
    text = one_line(said or str(error)).strip()
    return (text if len(text) <= 200 else f"{text[:200]}…") or name
