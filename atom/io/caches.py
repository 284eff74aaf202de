"""Provide cache folders that outlive a run. Code is loaded from some of them, so no other account
must be able to write there.

torch stores the code that it compiles below ``/tmp``, under a name that any account can claim
first.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from atom.errors import UserError
from atom.io import environment

_VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "CUTE_DSL_CACHE_DIR": "cute",
}
"""Variables that set the compilers' cache folders, and the subfolder of ATOM's cache for each."""


def folder() -> Path:
    """Return the cache folder: ``ATOM_CACHE``, or a folder in the user's cache.

    It is created, accessible to the user alone, where possible.

    Raises:
        UserError: another account can write to it.
    """
    try:
        if named := os.environ.get(environment.CACHE):
            place = Path(named).expanduser()
        else:
            place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atom"
    except RuntimeError:  # an account without a home folder
        return _temporary()
    _check(place, "ATOM_CACHE")
    with suppress(OSError):
        _make(place)
    return place


def keep_compiled_code() -> None:
    """Make compilers, in this process and its children, use cache folders that no other account can
    write to.

    A folder that the user has set is kept. Each kind of processor has its own folder.

    Raises:
        UserError: another account can write to a folder.
    """
    ours: Path | None = None
    for variable, name in _VARIABLES.items():
        if given := os.environ.get(variable):
            _check(Path(given), variable)
            continue
        ours = ours or _writable() / "compiled" / _processor()
        os.environ[variable] = str(ours / name)
    if ours is not None:
        _make(ours)


def _writable() -> Path:
    """Return ATOM's cache folder, or a temporary folder if it is not writable, as in a container
    without a home folder."""
    place = folder()
    if place.is_dir() and os.access(place, os.W_OK):
        return place
    return _temporary()


def _temporary() -> Path:
    place = Path(tempfile.gettempdir(), f"atom-{os.getuid()}")
    _make(place)
    _check(place, "ATOM_CACHE")
    return place


def _make(place: Path) -> None:
    """Create a folder and its missing parents, accessible to the user alone."""
    for path in reversed([place, *place.parents]):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)


def _processor() -> str:
    """Return an identifier that is equal on processors that can run the same code."""
    told = ""
    with suppress(OSError, UnicodeDecodeError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features", "CPU part")
        told = "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    return hashlib.sha256(f"{os.uname().machine}\n{told}".encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------- who can write


def _check(place: Path, variable: str) -> None:
    """Refuse a folder that another account can write to or replace."""
    real = Path(os.path.realpath(place))
    try:
        chain = [path for path in (real, *real.parents) if os.path.lexists(path)]
        for path in chain:
            if problem := _problem(path, within=path == real):
                raise UserError(
                    f"the cache {place} is not a safe place for code: {path} {problem}",
                    valid=f"`chmod go-w {path}` if it is yours, or another folder in {variable}",
                )
        if chain[0] == real:
            for entry in os.scandir(real):
                if not _is_trusted(entry.stat(follow_symlinks=False).st_uid):
                    raise UserError(
                        f"the cache {place} holds {entry.name}, which belongs to another account",
                        valid=f"your own folder in {variable}, or the same folder without it",
                    )
    except OSError as error:
        if isinstance(error, FileNotFoundError):  # another process of the user removes old files
            return
        raise UserError(
            f"the cache {place} cannot be used: {error.strerror}",
            valid=f"another folder in {variable}",
        ) from None


def _problem(path: Path, *, within: bool) -> str | None:
    """Return why a folder is not under the user's sole control, in words, or None.

    Args:
        path: the folder.
        within: True if files are stored directly in it. In a parent folder other accounts can
            have files of their own, if they cannot change the user's (sticky bit, as on ``/tmp``).
    """
    found = path.stat()
    if not _is_trusted(found.st_uid):
        return "belongs to another account"
    if not within and found.st_mode & stat.S_ISVTX:
        return None
    if found.st_mode & stat.S_IWOTH:
        return "can be written to by every account"
    if found.st_mode & stat.S_IWGRP and not _is_of_one(found.st_gid):
        return f"can be written to by the group {_group(found.st_gid)}"
    return None


def _is_trusted(user: int) -> bool:
    """Return whether a user id is the current user or an administrator of the machine.

    In a user namespace, as in a rootless container, the machine's own root has an unknown id.
    """
    return user in (os.getuid(), 0) or (user == _overflow() and not _is_initial_namespace())


def _is_of_one(group: int) -> bool:
    """Return whether a group has no members other than the user and root."""
    if group == 0:
        return True
    try:
        user = pwd.getpwuid(os.getuid())
        found = grp.getgrgid(group)
    except KeyError:
        return False
    own = group == user.pw_gid and found.gr_name == user.pw_name
    return own and set(found.gr_mem) <= {user.pw_name}


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _overflow() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


def _is_initial_namespace() -> bool:
    try:
        return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    except OSError:
        return True
