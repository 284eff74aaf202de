"""What a command does, as Python's audit events tell it: written down from within its process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

VARIABLE = "ATOM_TEST_AUDIT"
"""Names the file that :func:`install` writes to."""

_CHANGES = (
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
)
_STARTS = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn"),
    "subprocess.Popen",
)
_SENDS = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.bind")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install() -> None:
    """Write down from here on what this process does, if the environment asks for it."""
    if (file := os.environ.get(VARIABLE)) is None:
        return
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    installed = _installed()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        told = _told(event, arguments, installed)
        if told is not None:
            os.write(log, json.dumps(told).encode() + b"\n")

    sys.addaudithook(hook)


def read(file: Path) -> list[tuple[str, str]]:
    """Return what was done: (``reads``, ``writes``, ``runs``, ``starts`` or ``sends``, what)."""
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()]


def _installed() -> tuple[str, ...]:
    places = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])}
    return tuple(f"{os.path.realpath(place)}/" for place in places) + tuple(
        f"{place}/" for place in places
    )


def _told(event: str, arguments: tuple[Any, ...], installed: tuple[str, ...]) -> object:
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, int) or not isinstance(flags, int):
            return None
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (a hook has to be quick)
        writes = bool(flags & _WRITES)
        return None if name.startswith(installed) and not writes else (_verb(writes), name)
    if event == "exec":
        name = getattr(arguments[0], "co_filename", "<")
        return None if name.startswith(("<", *installed)) else ("runs", name)
    if event in _STARTS:
        return "starts", f"{event} {arguments[:2]!r}"
    if event in _SENDS:
        where = arguments[1] if event != "socket.getaddrinfo" else arguments[0]
        if event == "socket.bind" and where[0] in ("::1", "127.0.0.1"):
            return None  # urllib3 tries it, to know of IPv6
        return "sends", f"{event} {where!r}"
    if event in _CHANGES:
        names = (
            arguments[:2]
            if event in ("os.rename", "os.link", "os.symlink", "shutil.move")
            else arguments[:1]
        )
        if any(isinstance(name, int) for name in names):
            return None
        name = os.path.abspath(os.path.join(_folder(event, arguments), os.fsdecode(names[-1])))  # noqa: PTH100, PTH118
        # A folder that is there is not made.
        return None if event == "os.mkdir" and os.path.isdir(name) else ("writes", name)  # noqa: PTH112
    return None


_FOLDER = {
    "os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.symlink": 2, "os.rename": 3, "os.link": 3,
}  # fmt: skip
"""Which argument of an event is the open folder that a name is relative to."""


def _folder(event: str, arguments: tuple[Any, ...]) -> str:
    """Return the folder that a relative name is in; nothing for the current one."""
    number = arguments[_FOLDER[event]] if event in _FOLDER else -1
    if not isinstance(number, int) or number < 0:
        return ""
    return os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115


def _verb(writes: bool) -> str:
    return "writes" if writes else "reads"
