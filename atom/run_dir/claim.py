"""Ensure that one job at a time uses a run folder, with a lock that ends with its holder.

The lock is a kernel lock (``flock``) on ``running.json``. The launcher and the processes forked
from it hold it; the kernel releases it when the last of them ends, for whatever reason. No other
account can read the file, because a process that can open it could lock it and block the run.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from atom.errors import UserError
from atom.io import files, json_data
from atom.run_dir import heartbeat

FILE_NAME = "running.json"

_SILENT_SECONDS = 600

_held: dict[Path, int] = {}
"""Folder -> file descriptor of the lock, for the lifetime of this process."""


def claim(run: Path) -> None:
    """Lock the run folder for this process and its forked children.

    Raises:
        UserError: another job holds the lock.
    """
    place = run.resolve()
    if place in _held:
        return
    file = files.opened(place / FILE_NAME, os.O_RDWR | os.O_CREAT)
    if not _locked(file):
        os.close(file)
        check(run)
    # A process that can open the file can lock it.
    with suppress(OSError):
        os.fchmod(file, 0o600)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    os.ftruncate(file, 0)
    os.pwrite(file, f"{json.dumps(content)}\n".encode(), 0)
    _held[place] = file


def check(run: Path) -> None:
    """Raise :class:`UserError` if another job has the run folder."""
    if run.resolve() in _held or (who := holder(run)) is None:
        return
    raise UserError(
        f"a job is at work in it: process {who.get('pid', '?')} on {who.get('host', '?')}, since "
        f"{who.get('since', '?')}",
        valid="another folder, or wait for that job",
        key="run.dir",
        value=run,
    )


def holder(run: Path) -> dict[str, Any] | None:
    """Return ``pid``, ``host`` and ``since``, as far as known, of the job that holds a run folder;
    None if there is none."""
    try:
        file = files.opened(run / FILE_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except PermissionError:
        return _of_another_account(run)
    try:
        if _locked(file, fcntl.LOCK_SH):
            return None
        return _told(os.read(file, 4096))
    finally:
        os.close(file)


def _told(data: bytes) -> dict[str, Any]:
    try:
        content = json_data.loads(data)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    pid, told = content.get("pid"), {}
    # A pid outside this range would address many processes when a signal is sent to it.
    if isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 2**31:
        told["pid"] = pid
    words = {name: content.get(name) for name in ("host", "since")}
    return told | {name: word for name, word in words.items() if isinstance(word, str)}


def _of_another_account(run: Path) -> dict[str, Any] | None:
    """Return an empty record if a job of another account holds the run folder, else None.

    Its lock cannot be tested directly. The kernel lists the locks of this machine's processes; the
    run's heartbeat covers other machines.
    """
    with suppress(OSError):
        found = (run / FILE_NAME).stat()
        device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
        locks = Path("/proc/locks").read_text().splitlines()
        if any(f" {device}:{found.st_ino} " in lock for lock in locks if "FLOCK" in lock):
            return {}
    beat = heartbeat.last(run)
    return {} if beat is not None and time.time() - beat.time < _SILENT_SECONDS else None


def _locked(file: int, how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        # A filesystem without locks: jobs cannot be distinguished, so none is refused.
    return True
