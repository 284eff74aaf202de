"""Load everything that a report shows from a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.io import json_data
from atom.plan.outlook import Outlook
from atom.recipe.run import Run, read
from atom.run_dir import evals, events, history, metrics, profile
from atom.run_dir.evals import Evaluation
from atom.run_dir.folder import ORIGINS, RUN_FILE
from atom.run_dir.history import Period
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.profile import Shares
from atom.run_dir.status import Status, status


@dataclass(frozen=True)
class Record:
    """A run loaded from its folder.

    Attributes:
        rows: the metrics of the steps that count.
        done_again: metrics of steps that a restart repeated, from their first execution.
        happened: the events.
        origins: origin of each setting; None for a run of an earlier ATOM that did not record them.
        lock: content of ``lock.json``; empty if there is none.
        course: the periods of the run with different settings, and those settings:
            :func:`atom.run_dir.history.course`.
        evaluations: the results of evaluations.
        profile: per profiled rank, how the time of its steps was spent.
        problems: what is left out because it is unreadable, and why.
        planned: what was to be expected of the run; None if nobody asked.
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
    evaluations: list[Evaluation]
    profile: dict[int, list[Shares]]
    problems: list[str]
    planned: Outlook | None = None

    @property
    def name(self) -> str:
        """The name of the run folder and of its parent."""
        return "/".join(self.folder.absolute().parts[-2:])


def load(folder: Path) -> Record:
    """Load a run folder.

    Raises:
        UserError: the folder holds no run, or a file in it is unreadable.
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
        evaluations=evals.read(folder),
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
