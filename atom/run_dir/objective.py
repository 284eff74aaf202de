"""Read the value by which the runs of a sweep are compared, and check its name.

It is a number in rows of metrics (:mod:`atom.run_dir.chosen`), or a result of ``atom eval``:
``evaluation.TASK.METRIC``, or ``evaluation.TASK/CALLBACK.METRIC`` of averaged weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from atom.errors import UserError, nearest
from atom.recipe.run import Run
from atom.run_dir import chosen, evals, metrics
from atom.run_dir.evals import Evaluation

KEY = "sweep.objective"

_EVALUATION = "evaluation."


def check(run: Run, sets: Iterable[str]) -> None:
    """Refuse an objective that the run does not measure, as far as its settings tell.

    Args:
        run: the run.
        sets: the names of its validation sets.

    Raises:
        UserError: with the most similar names.
    """
    name = run.sweep.objective
    if name.startswith(_EVALUATION):
        if not run.evaluation.interval:
            raise UserError(
                "is measured by evaluations, and evaluation.interval=0",
                valid="evaluation.interval and evaluation.tasks, or `atom eval` and `atom compare "
                f"FOLDER --objective {name}` afterwards",
                key=KEY,
                value=name,
            )
        return  # an evaluator names its parts of tasks and metrics
    chosen.check(run, KEY, name, sets, value=name)


def value(folder: Path, name: str) -> float | None:
    """Return the last value of a run; NaN if it is not finite, None if it was not measured."""
    if name.startswith(_EVALUATION):
        result = _evaluations(folder).get(name)
        return None if result is None else result.value
    rows = metrics.read(folder / metrics.FILE_NAME)
    found = chosen.last(rows, name) if chosen.is_in(rows, name) else None
    return None if found is None else found[1]


def direction(folder: Path, name: str) -> str | None:
    """Return which values of an evaluation are better, if its evaluator tells."""
    found = _evaluations(folder).get(name) if name.startswith(_EVALUATION) else None
    if found is None or found.higher_is_better is None:
        return None
    return "maximize" if found.higher_is_better else "minimize"


def measured(run: Run, folder: Path) -> float:
    """Return the objective of a run that has ended; NaN if it is not finite.

    It is NaN, too, if the run has logged no step, or if its evaluations have failed.

    Raises:
        UserError: the run has measured other values, and not this one.
    """
    name = run.sweep.objective
    found = value(folder, name)
    evaluated = name.startswith(_EVALUATION)
    others = _evaluations(folder) if evaluated else metrics.last_step(folder / metrics.FILE_NAME)
    if found is None and others:
        raise UserError(
            f"the run in {folder} has not measured it; {nearest_in([folder], name)}",
            key=KEY,
            value=name,
        )
    return math.nan if found is None else found


def nearest_in(folders: Sequence[Path], name: str) -> str:
    """Return the values that runs have measured that are nearest to ``name``, in words."""
    known: dict[str, None] = {}
    for folder in folders:
        known |= dict.fromkeys(chosen.names(metrics.read(folder / metrics.FILE_NAME)))
        known |= dict.fromkeys(_evaluations(folder))
    return nearest(name, known)


def _evaluations(folder: Path) -> dict[str, Evaluation]:
    """Return the newest result of each number, by the name of the value."""
    found = {}
    for name, results in evals.by_name(evals.read(folder)).items():
        last = results[-1]
        evaluator = name.removesuffix(last.name)  # only if several have the task
        average = f"/{last.average}" if last.average else ""
        found[f"{_EVALUATION}{evaluator}{last.task}{average}.{last.metric}"] = last
    return found
