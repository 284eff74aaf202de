"""Keep parts and copies of objects on this machine, in bounded space that its processes share.

Objects are read by blocks, or copied whole. Blocks that were not read for the longest time give
way to new ones; so do copies that no process uses.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock

from atom.errors import UserError
from atom.io import caches, environment, objects
from atom.io.copy_names import folder_of, is_copy, path_of, told_beside
from atom.io.files import is_full, is_regular, read_bytes, write_text
from atom.io.objects import Object, ObjectError
from atom.io.ranges import CHECKED
from atom.io.terminal import say
from atom.io.urls import Url

BLOCK = 256 << 10
"""Bytes of a block. A document of 1,000 tokens has 2 to 4 KiB."""

GIB = 32.0
"""Default limit of the cache."""

_IN_MEMORY = 64
"""Blocks that each process keeps in memory."""

_REQUESTS = 4
"""Requests at once for a copy."""

_CHECK_SECONDS = 60
_ABANDONED_SECONDS = 3600
"""Age of an unfinished copy that was not written to any more."""

_PART = "%part"
"""End of the name of an unfinished copy; no copy has it."""

_TOLD = 256 << 20
"""Bytes from which on a copy is announced."""

_LOCKS = 256
_KEPT = 0.9
"""Fraction of the limit that is kept when the cache is full."""


class ObjectCache:
    """Blocks and copies of objects in a folder.

    Args:
        folder: the folder; no other account can write to it.
        most: maximum bytes of its files together.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        self._memory: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._memory_lock = Lock()
        self._checked: dict[str, float] = {}
        """Key of an object -> when it was seen unchanged."""
        self._used: int | None = None
        """Descriptor of the file that says which copies this process uses."""
        with self._writable():
            for name in ("blocks", "copies", "locks", "used"):
                (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def copies(self) -> Path:
        """The folder of the copies: see :mod:`atom.io.copy_names`."""
        return self._folder / "copies"

    # ------------------------------------------------------------------------ blocks

    def read(self, found: Object, begin: int, end: int) -> bytes:
        """Return bytes ``begin`` to ``end`` - 1 of an object.

        Raises:
            ObjectError: the store does not answer, or the object has changed.
        """
        if begin >= end:
            return b""
        first, last = begin // BLOCK, (end - 1) // BLOCK
        content = b"".join(self._blocks(found, first, last))
        return content[begin - first * BLOCK : end - first * BLOCK]

    def _blocks(self, found: Object, first: int, last: int) -> Iterator[bytes]:
        """Yield blocks; neighbours that are missing are read by one request."""
        key, number = _key(found), first
        while number <= last:
            if (content := self._kept(found, key, number)) is not None:
                yield content
                number += 1
                continue
            until = number + 1
            while until <= last and self._kept(found, key, until) is None:
                until += 1
            yield from self._fetched(found, key, number, until)
            number = until

    def _fetched(self, found: Object, key: str, first: int, until: int) -> Iterator[bytes]:
        # One process of the machine sends the request; the others wait for its blocks.
        with self._locked(f"{key}{first}"):
            if (content := self._kept(found, key, first)) is not None and until == first + 1:
                yield content
                return
            begin, end = first * BLOCK, min(until * BLOCK, found.size)
            content = objects.read(found, begin, end)
            self._check(found, key)
            for number in range(first, until):
                part = content[(number - first) * BLOCK : (number - first + 1) * BLOCK]
                self._keep(key, number, part)
                yield part

    def _check(self, found: Object, key: str) -> None:
        """Refuse a replaced object, at most once a minute, where answers do not say theirs."""
        now = time.monotonic()
        due = now - self._checked.get(key, -math.inf) >= _CHECK_SECONDS
        if due and found.url.scheme not in CHECKED:
            objects.check_unchanged(found)
            self._checked[key] = now

    def _kept(self, found: Object, key: str, number: int) -> bytes | None:
        with self._memory_lock:
            if (content := self._memory.get((key, number))) is not None:
                self._memory.move_to_end((key, number))
                return content
        path = self._block(key, number)
        size = min(BLOCK, found.size - number * BLOCK)
        try:
            content = read_bytes(path, most=BLOCK)
            if len(content) != size:
                return None
            os.utime(path)
        except OSError:
            return None
        self._remember(key, number, content)
        return content

    def _keep(self, key: str, number: int, content: bytes) -> None:
        self._remember(key, number, content)
        path = self._block(key, number)
        # Without space on the disk, blocks are read again.
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._make_room(len(content))
            new = path.with_name(f"{number}.{secrets.token_hex(8)}")
            try:
                new.write_bytes(content)
                new.replace(path)
            finally:
                new.unlink(missing_ok=True)

    def _remember(self, key: str, number: int, content: bytes) -> None:
        with self._memory_lock:
            self._memory[key, number] = content
            if len(self._memory) > _IN_MEMORY:
                self._memory.popitem(last=False)

    def _block(self, key: str, number: int) -> Path:
        return self._folder / "blocks" / key / str(number)

    # ------------------------------------------------------------------------ copies

    def copy(self, found: Object, key: str | None = None) -> Path:
        """Return a copy of an object; it stays as long as this process uses it.

        Args:
            found: the object.
            key: the key of the object in a run, for errors.

        Raises:
            UserError: the copy does not fit into the cache or onto the disk.
            ObjectError: the store does not answer.
        """
        path = self.path(found.url)
        self._use(path)
        told = told_beside(path)
        version = json.dumps([str(found.url), found.size, found.version])
        with self._locked(str(path)):
            if is_copy(path, found.size, version):
                os.utime(told)
                return path
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not self._make_room(found.size):
                    raise UserError(
                        f"the cache of objects, {self._folder}, holds {self._most / 2**30:.3g} "
                        "GiB, and the copies in use do not fit",
                        valid=f"more in {environment.OBJECT_CACHE_GIB}, or dataset=huggingface, "
                        "which streams",
                        key=key,
                        value=str(found.url),
                    )
                self._download(found, path)
                objects.check_unchanged(found)
                write_text(told, version)
            except (UserError, ObjectError):
                path.unlink(missing_ok=True)
                raise
            except OSError as error:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                full = is_full(error)
                reason = "its disk is full" if full else f"{error.filename}: {error.strerror}"
                raise UserError(
                    f"the cache of objects, {self._folder}, cannot keep a copy: {reason}",
                    valid=f"free space there, or another folder in {environment.CACHE}",
                    key=key,
                    value=str(found.url),
                ) from None
        return path

    def copy_at(self, url: Url, key: str | None = None, most: int | None = None) -> Path | None:
        """Return a copy of the object at a URL, or None; a copy of one that was there is removed.

        Args:
            url: the URL.
            key: the key of the object in a run, for errors.
            most: maximum size in bytes.

        Raises:
            UserError: as for :meth:`copy`.
            ObjectError: as for :meth:`copy`, or it is too large.
        """
        if (found := objects.find(url)) is None:
            path = self.path(url)
            with self._locked(str(path)), self._writable():
                told_beside(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            return None
        if most is not None and found.size > most:
            raise ObjectError(url, f"has more than {most >> 20:,} MiB")
        return self.copy(found, key)

    def path(self, url: Url) -> Path:
        """Return the path of the copy of an object."""
        return self.copies / path_of(url)

    def folder(self, url: Url) -> Path:
        """Return the folder of the copies of a folder's objects."""
        return self.copies / folder_of(url)

    def _download(self, found: Object, path: Path) -> None:
        if found.size >= _TOLD:
            say(f"copying {found.url} ({found.size / 2**30:.1f} GiB) into the cache …")
        new = path.with_name(f".{secrets.token_hex(8)}{_PART}")
        begins = range(0, found.size, objects.PART)
        try:
            with new.open("wb") as file, ThreadPoolExecutor(_REQUESTS) as pool:
                file.truncate(found.size)  # others count its bytes

                def fetch(begin: int) -> None:
                    end = min(begin + objects.PART, found.size)
                    os.pwrite(file.fileno(), objects.read(found, begin, end), begin)

                list(pool.map(fetch, begins))
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)

    def _use(self, path: Path) -> None:
        """Keep a copy from being removed while this process runs."""
        with self._writable():
            if self._used is None:
                name = f"{os.getpid()}-{secrets.token_hex(4)}"
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
                self._used = os.open(self._folder / "used" / name, flags, 0o600)
                # The lock ends with the process, however it ends.
                fcntl.flock(self._used, fcntl.LOCK_EX)
            os.write(self._used, f"{path}\n".encode())

    def _in_use(self) -> set[Path]:
        found: set[Path] = set()
        for file in (self._folder / "used").iterdir():
            try:
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink(missing_ok=True)
            except OSError:  # its process lives
                found.update(map(Path, file.read_text().splitlines()))
            finally:
                os.close(descriptor)
        return found

    # ------------------------------------------------------------------------ space

    def _make_room(self, size: int) -> bool:
        """Count ``size`` more bytes; remove old files if they exceed the limit.

        Returns whether they fit.
        """
        count = self._folder / "bytes"
        with self._locked("bytes"):
            try:
                total = int(count.read_text()) + size
            except (OSError, ValueError):
                total = self._most + 1
            if total > self._most:
                total = self._tidied(int(self._most * _KEPT) - size) + size
            count.write_text(str(total))
            if total <= self._most:
                return True
            count.write_text(str(total - size))
            return False

    def _tidied(self, most: int) -> int:
        """Remove the oldest files down to ``most`` bytes; return the bytes that are left."""
        in_use, total = self._in_use(), 0
        removable: list[tuple[float, int, Path]] = []
        for path in _files(self._folder / "blocks"):
            with suppress(OSError):
                found = path.stat()
                removable.append((found.st_mtime, found.st_size, path))
                total += found.st_size
        for path in _files(self.copies):
            unfinished = path.name.endswith(_PART)
            if path.name.startswith(".") and not unfinished:
                continue
            with suppress(OSError):
                found, told = path.stat(), told_beside(path)
                total += found.st_size
                if not unfinished and path not in in_use and is_regular(told):
                    removable.append((told.stat().st_mtime, found.st_size, path))
                elif path not in in_use and time.time() - found.st_mtime > _ABANDONED_SECONDS:
                    removable.append((0, found.st_size, path))
        for _, size, path in sorted(removable):
            if total <= most:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        number = int.from_bytes(hashlib.sha256(what.encode()).digest()[:4]) % _LOCKS
        path = self._folder / "locks" / ("bytes" if what == "bytes" else str(number))
        with self._writable():
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the cache of objects, {self._folder}, cannot be written: {error.strerror}",
                valid=f"another folder in {environment.CACHE}",
            ) from None


# ---------------------------------------------------------------------------- this machine's


def shared() -> ObjectCache:
    """Return the cache of this machine's user.

    Raises:
        UserError: its folder is not safe, or a variable in the environment is invalid.
    """
    most = environment.number(environment.OBJECT_CACHE_GIB, GIB)
    return _shared(caches.folder() / "objects", int(min(most * 2**30, 2**62)), os.getpid())


@cache
def _shared(folder: Path, most: int, process: int) -> ObjectCache:  # noqa: ARG001
    return ObjectCache(folder, most)


def _key(found: Object) -> str:
    whole = json.dumps([str(found.url), found.size, found.version])
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _files(folder: Path) -> Iterable[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)
