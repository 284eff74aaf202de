"""Find the runs under a folder, and the status of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atom.errors import UserError
from atom.run_dir import claim, events, metrics
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.status import Status, status

_SIGNS = (RUN_FILE, metrics.FILE_NAME, events.FILE_NAME)
"""Files that change when a run changes without an active job."""


@dataclass(frozen=True)
class Found:
    """A run folder with its status, or the reason why the status is unknown."""

    folder: Path
    status: Status | None
    problem: str | None = None


class Runs:
    """The runs under a folder; it can be polled, and reads a run that has ended only once.

    Raises:
        UserError: the folder does not exist.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder", valid="one that holds run folders")
        self._folder = folder
        self._known: dict[Path, tuple[tuple, Found]] = {}

    def look(self) -> list[Found]:
        """Return every run, the most recently started first."""
        found = [self._of(place) for place in folders(self._folder)]
        return sorted(found, key=_started, reverse=True)

    def _of(self, place: Path) -> Found:
        signs = tuple(_sign(place / name) for name in _SIGNS)
        known = self._known.get(place)
        if known and known[0] == signs and not _runs(known[1]):
            again = known[1]
            # A job may have started without having written anything yet.
            if not _at_work(place):
                return again
        try:
            found = Found(place, status(place))
        except (UserError, OSError) as error:
            found = Found(place, None, " ".join(str(error).split()))
        self._known[place] = (signs, found)
        return found


def folders(folder: Path) -> Iterator[Path]:
    """Yield the run folders in a folder, including itself; runs are not nested.

    A folder that has lost its ``run.yaml`` counts as a run if it has events.
    """
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        if any(os.path.lexists(place / name) for name in (RUN_FILE, events.FILE_NAME)):
            yield place
            continue
        try:
            below = sorted(entry.name for entry in os.scandir(place) if _is_folder(entry))
        except OSError:  # unreadable for this user, or removed meanwhile
            continue
        waiting += [place / name for name in reversed(below)]


def _is_folder(entry: os.DirEntry) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def _sign(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _runs(found: Found) -> bool:
    return found.status is not None and found.status.state == "running"


def _at_work(place: Path) -> bool:
    try:
        return claim.holder(place) is not None
    except OSError:
        return True  # its status reports the error


def _started(found: Found) -> str:
    return (found.status.started if found.status else None) or ""
