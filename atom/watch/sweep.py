"""Rank the runs of a sweep by its objective, and find the settings that matter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atom.errors import UserError, shown
from atom.io.files import is_regular
from atom.recipe.run import read
from atom.run_dir import objective
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.status import Status
from atom.watch import compare
from atom.watch.importance import FEW, Importance, importance, ranked

LIMITS = (
    "share: of the variance of {objective}, what the setting explains alone, adjusted for the "
    "number of its values. What settings do together, and values that were not tried, are not in "
    "it."
)


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: the name of its folder.
        folder: its folder.
        status: its status.
        value: the objective; NaN if it is not finite, None if it was not measured.
        settings: the settings in which runs of the sweep differ.
    """

    name: str
    folder: Path
    status: Status
    value: float | None
    settings: dict[str, Any]

    @property
    def counts(self) -> bool:
        """Whether the run has finished with a finite value."""
        finite = self.value is not None and math.isfinite(self.value)
        return finite and self.status.state == "finished"


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep.

    Attributes:
        folder: the folder of the sweep.
        objective: the name of the value.
        least: whether the lowest value is the best.
        trials: the runs that count, from the best to the worst, and then the others.
    """

    folder: Path
    objective: str
    least: bool
    trials: list[Trial]

    @property
    def direction(self) -> str:
        """``minimize`` or ``maximize``."""
        return "minimize" if self.least else "maximize"

    @property
    def counted(self) -> list[Trial]:
        """The runs that have finished with a finite value."""
        return [trial for trial in self.trials if trial.counts]

    @property
    def title(self) -> str:
        """What is compared, in words."""
        order = "lowest" if self.least else "highest"
        return f"{len(self.trials)} runs by {self.objective}, the {order} first"

    @property
    def settings(self) -> list[str]:
        """The settings in which the runs differ."""
        return list(self.trials[0].settings)

    @cached_property
    def importances(self) -> list[Importance]:
        """What each setting explains, the most important one first."""
        counted = self.counted
        if len(counted) < 2:
            return []
        results = [trial.value for trial in counted if trial.value is not None]
        found = []
        for key in self.settings:
            values = self.values(key)
            if len({shown(value) for value in values}) > 1:
                found.append(importance(key, values, results, least=self.least))
        return ranked(found)

    def values(self, key: str) -> list[Any]:
        """Return the values of a setting in the runs that count."""
        return [trial.settings[key] for trial in self.counted]

    @property
    def notes(self) -> list[str]:
        """What a reader has to know about the ranking, in sentences."""
        found = [
            f"run {trial.name} is not ranked: {_reason(trial)}"
            for trial in self.trials
            if not trial.counts
        ]
        if self.importances:
            found.append(LIMITS.format(objective=self.objective))
            if len(self.counted) < FEW:
                found.append(f"{len(self.counted)} runs are few: shares may be chance.")
        return found


def is_sweep(folder: Path) -> bool:
    """Return whether ``folder`` holds two runs or more, and is none."""
    return not is_regular(folder / RUN_FILE) and len(_runs(folder)) > 1


def load(folder: Path, name: str | None = None, direction: str | None = None) -> Sweep:
    """Load the runs of a sweep.

    Args:
        folder: the folder of the sweep.
        name: the value to compare; None for the ``sweep.objective`` of the runs.
        direction: ``minimize`` or ``maximize``; None for the ``sweep.direction`` of the runs, or
            for what is better by an evaluator, or for the lowest if ``name`` is another value.

    Raises:
        UserError: a file is unreadable, the runs have several objectives, or none has the value.
    """
    folders = _runs(folder)
    sections = [read(each / RUN_FILE, below=each).sweep for each in folders]
    for key, given in (("objective", name), ("direction", direction)):
        different = sorted({str(getattr(section, key)) for section in sections})
        if given is None and name is None and len(different) > 1:
            raise UserError(
                f"the runs in {folder} have different values of sweep.{key}: "
                f"{', '.join(different)}",
                valid=f"--{key}",
            )
    own = sections[0]
    name = name or own.objective
    told = (objective.direction(each, name) for each in folders)
    direction = direction or next(filter(None, told), None)
    if direction is None:
        direction = own.direction if name == own.objective else "minimize"
    compared = compare.load(folders)
    differing = compare.differing(compared)
    trials = [
        Trial(
            run.folder.name,
            run.folder,
            run.status,
            objective.value(run.folder, name),
            {key: values[number] for key, values in differing.items()},
        )
        for number, run in enumerate(compared)
    ]
    if all(trial.value is None for trial in trials):
        hint = objective.nearest_in(folders, name)
        raise UserError(f"no run in {folder} has measured {name}; {hint}")
    least = direction == "minimize"
    return Sweep(folder, name, least, sorted(trials, key=lambda trial: _order(trial, least=least)))


def _order(trial: Trial, *, least: bool) -> tuple[bool, float]:
    value = trial.value if trial.counts and trial.value is not None else 0.0
    return not trial.counts, value if least else -value


def _reason(trial: Trial) -> str:
    status = trial.status
    if status.state != "finished":
        return f"{status.state}{f' ({status.reason})' if status.reason else ''}"
    return "it has not measured the objective" if trial.value is None else "it is not finite"


def _runs(folder: Path) -> list[Path]:
    """Return the run folders directly below ``folder``, those with numbers in their order."""
    found = [file.parent for file in folder.glob(f"*/{RUN_FILE}") if is_regular(file)]
    return sorted(found, key=lambda run: (int(run.name) if run.name.isdecimal() else -1, run.name))


def cell(value: float | None) -> str:
    """Return a value of the objective as text."""
    return "–" if value is None else f"{value:.6g}"


def rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the ranking, as text."""
    head = ["", "run", sweep.objective, *sweep.settings, "state", "step"]
    found = []
    for place, trial in enumerate(sweep.trials, 1):
        status = trial.status
        steps = f"{status.step:,}" + (f"/{status.steps:,}" if status.steps else "")
        settings = (_short(value) for value in trial.settings.values())
        rank = f"{place}" if trial.counts else "–"
        found.append([rank, trial.name, cell(trial.value), *settings, status.state, steps])
    return head, found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def importance_rows(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the settings that matter, as text."""
    head = ["setting", "values", "share", "best", f"mean {sweep.objective} there"]
    return head, [
        [
            one.setting,
            f"{one.values}",
            "–" if one.share is None else f"{one.share:.0%}",
            one.best,
            cell(one.worth),
        ]
        for one in sweep.importances
    ]
