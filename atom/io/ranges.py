"""Read a range of an object, and check that the answer is of the version that was found."""

from __future__ import annotations

import re
from typing import Any

from atom.io.urls import WEB

CHECKED = ("s3", *WEB)
"""Schemes with answers that say their version."""

VERSIONS = ("ETag", "etag", "generation", "blob_id", "Content-MD5", "Digest")
TIMES = ("LastModified", "Last-Modified", "updated")

_MOST_WHOLE = 64 << 20
"""Largest object that is read from a server without ranges, which sends all of it each time."""


class ChangedError(Exception):
    """Raised if an answer is of another version."""


class NoRangesError(Exception):
    """Raised if a server sends the whole of a large object where a range is asked for."""


def version_of(info: Any) -> str:
    """Return what changes when an object is replaced; empty if the store does not say."""
    return next((str(info[name]) for name in (*VERSIONS, *TIMES) if info.get(name)), "")


def read(system: Any, name: str, begin: int, end: int, size: int, version: str) -> bytes:
    """Return bytes ``begin`` to ``end`` - 1, or what the server sends instead of them.

    Args:
        system: fsspec's filesystem of one of the schemes :data:`CHECKED`.
        name: the object's name there.
        begin: first byte.
        end: byte after the last one.
        size: the size of the object.
        version: its version.
    """
    from fsspec.asyn import sync  # type: ignore[import-untyped]

    get = _of_web if WEB[0] in system.protocol else _of_s3
    content: bytes = sync(system.loop, get, system, name, begin, end, size, version)
    return content


async def _of_s3(system: Any, name: str, begin: int, end: int, _size: int, version: str) -> bytes:
    bucket, key, _ = system.split_path(name)
    asked = {"Bucket": bucket, "Key": key, "Range": f"bytes={begin}-{end - 1}"}
    answer = await system._call_s3("get_object", **asked, **system.req_kw)
    async with answer["Body"] as body:
        if answer.get("ETag", version) != version:
            raise ChangedError
        content: bytes = await body.read()
    return content


async def _of_web(system: Any, name: str, begin: int, end: int, size: int, version: str) -> bytes:
    session = await system.set_session()
    # Of a compressed answer, ranges would be those of the compressed bytes.
    headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    async with session.get(system.encode_url(name), headers=headers) as answer:
        system._raise_not_found_for_status(answer, name)
        if version_of(answer.headers) not in ("", version) or _size(answer, size) != size:
            raise ChangedError
        if answer.status == 200 and size > max(end - begin, _MOST_WHOLE):
            raise NoRangesError
        content: bytes = await answer.read()
    return content[begin:end] if answer.status == 200 and len(content) == size else content


def _size(answer: Any, size: int) -> int:
    """Return the size of the object that an answer says; ``size`` if it says none."""
    found = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found and answer.status == 206 else size
