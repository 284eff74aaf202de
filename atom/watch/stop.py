"""Ask the job of a run folder to save a checkpoint and stop."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from atom.errors import RunError, UserError
from atom.run_dir import claim
from atom.run_dir.status import Status, status

SIGNAL = signal.SIGUSR1
"""Stop signal for the launcher and for ranks that torchrun or Slurm started. A process without a
handler for it has not trained anything yet."""

_POLL_SECONDS = 0.2


def stop(run: Path, *, timeout: float | None, asked: Callable[[int], None]) -> Status:
    """Send the stop signal, wait for the end, and return the run's final status.

    Args:
        run: the run folder.
        timeout: maximum seconds to wait; None to wait indefinitely.
        asked: called with the job's process id after the signal was sent.

    Raises:
        UserError: there is no job, or it cannot be signalled from here.
        RunError: the job has not ended in time.
    """
    before = status(run)
    job = claim.holder(run)
    if job is None:
        raise UserError(f"no job is at work in {run}; its state is {before.state}")
    pid, host = job.get("pid"), job.get("host")
    if host != socket.gethostname():
        raise UserError(
            f"the job at work in {run} is process {pid} on {host}, and this is "
            f"{socket.gethostname()}",
            valid=f"this command there, or `kill -USR1 {pid}` there",
        )
    deadline = None if timeout is None else time.monotonic() + timeout
    if isinstance(pid, int) and _listens(run, pid, job, deadline):
        try:
            os.kill(pid, SIGNAL)
        except PermissionError:
            raise UserError(
                f"process {pid}, the job at work in {run}, is another user's",
                valid="its user, or root",
            ) from None
        asked(pid)
    while _same(claim.holder(run), job):
        if deadline is not None and time.monotonic() > deadline:
            raise RunError(
                f"the job at work in {run} (process {pid}) has not ended in {timeout:g} s; it "
                "will stop after its next step"
            )
        time.sleep(_POLL_SECONDS)
    return status(run)


def _listens(run: Path, pid: int, job: dict, deadline: float | None) -> bool:
    """Wait until the job has a handler for the signal, which would otherwise kill it.

    Returns:
        False if the job has ended, or its launcher has ended and its children are about to.
    """
    while _same(claim.holder(run), job):
        if not _holds(run, pid):
            return False
        if _caught(pid) >> (SIGNAL - 1) & 1:
            return True
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return False


def _holds(run: Path, pid: int) -> bool:
    """Return whether a process has the run's lock file open; a process id can be reused."""
    claimed = (run / claim.FILE_NAME).stat()
    try:
        opened = list(Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return True  # another user's process; sending the signal will show whether it is permitted
    except OSError:
        return False
    for descriptor in opened:
        try:
            if os.path.samestat(descriptor.stat(), claimed):
                return True
        except OSError:
            continue
    return False


def _caught(pid: int) -> int:
    """Return the bit mask of signals that a process handles."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("SigCgt:")), "SigCgt: 0")
    return int(found.split()[1], 16)


def _same(job: dict | None, other: dict) -> bool:
    return job is not None and (job.get("pid"), job.get("since")) == (
        other.get("pid"),
        other.get("since"),
    )
