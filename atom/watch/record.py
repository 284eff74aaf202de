"""All that a run folder holds on a run, read once, for a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.io import json_data
from atom.recipe.run import Run, read
from atom.run_dir import events, history, metrics, profile
from atom.run_dir.folder import ORIGINS, RUN_FILE
from atom.run_dir.history import Period
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.profile import Shares
from atom.run_dir.status import Status, status


@dataclass(frozen=True)
class Record:
    """A run as its folder tells it.

    Attributes:
        rows: the steps that count.
        done_again: rows of steps that a restart did again, as they were first.
        happened: its events.
        origins: where its settings came from; None for a run of an ATOM that did not keep it.
        lock: what ``lock.json`` holds; empty if there is none.
        course: the periods of the run that other settings have made, and those settings:
            :func:`atom.run_dir.history.course`.
        profile: of each rank that profiled, where the time of its steps went.
        problems: what is left out because it cannot be read, and why.
    """

    folder: Path
    run: Run
    status: Status
    rows: list[StepMetrics]
    done_again: list[StepMetrics]
    happened: list[dict[str, Any]]
    origins: dict[str, str] | None
    lock: dict[str, Any]
    course: tuple[list[Period], dict[str, list[Any]]]
    profile: dict[int, list[Shares]]
    problems: list[str]

    @property
    def name(self) -> str:
        """The run folder's name, with the one above it."""
        return "/".join(self.folder.absolute().parts[-2:])


def load(folder: Path) -> Record:
    """Read a run folder.

    Raises:
        UserError: it holds no run, or what cannot be read.
    """
    found = status(folder)
    rows = folder / metrics.FILE_NAME
    problems: list[str] = []
    return Record(
        folder=folder,
        run=read(folder / RUN_FILE),
        status=found,
        rows=metrics.read(rows),
        done_again=metrics.read(rows.with_name(f"{rows.stem}.rolled_back{rows.suffix}")),
        happened=events.read(folder),
        origins=_json(folder / ORIGINS, problems),
        lock=_json(folder / "lock.json", problems) or {},
        course=history.course(folder, RUN_FILE),
        profile=profile.read(folder, problems),
        problems=problems,
    )


def _json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        return json_data.read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({' '.join(str(error).split())})")
        return None
