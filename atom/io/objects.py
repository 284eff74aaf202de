"""List, read and write objects by URL; repeat requests that fail.

fsspec, and the package that it has for each scheme, sends the requests.
"""

from __future__ import annotations

import errno
import math
import os
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from atom.errors import UserError
from atom.io import environment, ranges
from atom.io.store_errors import denial, is_denied, is_final, is_missing, is_no_range, reason
from atom.io.terminal import say
from atom.io.urls import WEB, Url
from atom.redaction import concealed

T = TypeVar("T")

PART = 8 << 20
"""Bytes of a large object that one request reads."""

SECONDS = 300.0
"""Default time that failing requests are repeated for."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 20.0
_CONNECT_SECONDS, _READ_SECONDS = 10, 60

_PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs")}
"""Scheme -> the package that it needs, and the extra of ATOM that installs it."""

_INFO = {"hf": {"expand_info": True}}
"""Arguments of fsspec's ``info`` that make it say the version."""

_CHANGED = "has changed under the run"

_TOLD_SECONDS = 10
"""Time that requests fail for until it is told; others are told as rarely."""

_OWN_MISTAKES = (AttributeError, NameError, TypeError, AssertionError, NotImplementedError)


class ObjectError(OSError):
    """Raised if a store does not answer, or not as it must; ``str`` is a sentence."""

    def __init__(self, url: Url, problem: str) -> None:
        super().__init__(errno.EIO, problem, str(url))

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectError, (Url(str(self.filename)), str(self.strerror))

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
            if isinstance(error.__cause__, Exception) and not is_missing(error.__cause__):
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
        ObjectError: the store does not answer, or sends fewer bytes, again and again; or it sends
            those of another version, where it says so: see :data:`atom.io.ranges.CHECKED`.
    """
    if begin == end:
        return b""

    def look() -> bytes:
        system, name = _system(found.url.scheme), _name(found.url)
        try:
            if found.url.scheme in ranges.CHECKED:
                content = ranges.read(system, name, begin, end, found.size, found.version)
            else:
                content = system.cat_file(name, start=begin, end=end)
        except FileNotFoundError:
            raise ObjectError(found.url, "has been removed meanwhile") from None
        except ranges.ChangedError:
            raise ObjectError(found.url, _CHANGED) from None
        except ranges.NoRangesError:
            raise ObjectError(found.url, "its server sends no ranges, and it is large") from None
        except Exception as error:
            if is_no_range(error):
                check_unchanged(found)
            raise
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
        raise ObjectError(found.url, _CHANGED)


# ---------------------------------------------------------------------------- writing


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
    return _made(scheme, os.getpid(), scheme in _anonymous, min(_READ_SECONDS, seconds()))


_anonymous: set[str] = set()
"""Schemes without credentials on this machine: public buckets can be read."""


@cache
def _made(scheme: str, process: int, anonymous: bool, wait: float) -> Any:  # noqa: ARG001 (a child has its own)
    import fsspec  # type: ignore[import-untyped]

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        limits = {"connect_timeout": min(_CONNECT_SECONDS, wait), "read_timeout": wait}
        options["config_kwargs"] = limits | {"retries": {"max_attempts": 0}}
        options |= {"anon": True} if anonymous else {}
    if scheme in WEB:
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(_CONNECT_SECONDS, wait), sock_read=wait
        )
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
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


def _object(url: Url, info: dict[str, Any]) -> Object:
    size = info.get("size")
    if size is None:
        raise ObjectError(url, "its server does not say how large it is")
    version = ranges.version_of(info)
    if url.is_web and not version:
        raise ObjectError(
            url,
            "its server says neither ETag nor Last-Modified, so nobody would notice a change of it",
        )
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
            if is_denied(error):
                raise ObjectError(url, f"{problem}: {denial(url.scheme, error)}") from None
            if is_final(error):
                raise ObjectError(url, f"{problem}: {reason(error)}") from None
            past = time.monotonic() - begun
            if past + pause <= limit:
                _tell(url, problem, error, past, limit)
            else:
                raise ObjectError(
                    url,
                    f"{problem}: {reason(error)} (given up after {tries} tries in {past:.0f} s)",
                ) from None
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _LONGEST_PAUSE)


_told = -math.inf


def _tell(url: Url, problem: str, error: Exception, past: float, limit: float) -> None:
    """Say that a request is repeated, unless it has just begun to fail."""
    global _told
    if past >= _TOLD_SECONDS and time.monotonic() - _told >= _TOLD_SECONDS:
        _told = time.monotonic()
        text = f"{url}: {problem}: {reason(error)}; trying again (for {past:.0f} of {limit:.0f} s)"
        say(concealed(text))


def seconds() -> float:
    """Return how long failing requests are repeated.

    Raises:
        UserError: the variable in the environment is no such number.
    """
    return environment.number(environment.OBJECT_SECONDS, SECONDS)
