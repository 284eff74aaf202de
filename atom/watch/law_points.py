"""Read parameters, tokens and loss of finished runs, for the fit of a scaling law."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from atom.errors import UserError
from atom.plan.law_fit import Point
from atom.recipe.run import Run, read
from atom.run_dir import metrics
from atom.run_dir.folder import RUN_FILE
from atom.run_dir.metrics import StepMetrics
from atom.run_dir.status import status
from atom.watch.compare import names

TRAINING = "loss"

_LAST = 0.05
"""Share of a run's steps at its end of which the training loss is averaged."""


def points(folders: Sequence[Path], loss: str | None = None) -> tuple[list[Point], str]:
    """Return the points of runs, and the name of their loss.

    Args:
        folders: the run folders.
        loss: the name of a validation set; ``loss``: the training loss at the end; None: the
            validation set that all runs have, if there is just one, else the training loss.

    Raises:
        UserError: a folder holds no finished run, or the losses cannot be compared.
    """
    runs = [_finished(folder) for folder in folders]
    rows = [metrics.read(folder / metrics.FILE_NAME) for folder in folders]
    _check(folders, runs)
    loss = loss or _common(rows)
    return [
        Point(name, _parameters(folder, run), _tokens(folder, each), _loss(folder, each, loss))
        for name, folder, run, each in zip(names(folders), folders, runs, rows, strict=True)
    ], loss


def _finished(folder: Path) -> Run:
    found = status(folder)
    if found.state != "finished":
        raise UserError(f"{folder} is {found.state}", valid="finished runs")
    return read(folder / RUN_FILE, below=folder)


def _check(folders: Sequence[Path], runs: Sequence[Run]) -> None:
    """Refuse runs with other tokens: their losses are not of one law."""
    for name in ("tokenizer", "dataset"):
        first = getattr(runs[0], name)
        for folder, run in zip(folders, runs, strict=True):
            if getattr(run, name) != first:
                raise UserError(
                    f"{folder} has another {name} than {folders[0]}, so their losses cannot be "
                    "compared",
                    valid=f"runs with one {name}",
                )


def _common(rows: Sequence[list[StepMetrics]]) -> str:
    shared = set.intersection(*(set(metrics.by_set(each)) for each in rows))
    return shared.pop() if len(shared) == 1 else TRAINING


def _parameters(folder: Path, run: Run) -> float:
    if run.resolved is None or run.resolved.parameters is None:
        raise UserError(
            f"{folder} does not record its number of parameters: an earlier ATOM trained it",
            valid="runs of this ATOM",
        )
    return run.resolved.parameters


def _tokens(folder: Path, rows: Sequence[StepMetrics]) -> float:
    if not rows:
        raise UserError(f"{folder} has no steps in {metrics.FILE_NAME}")
    return rows[-1].tokens_seen


def _loss(folder: Path, rows: Sequence[StepMetrics], name: str) -> float:
    if name == TRAINING:
        last = [row.loss for row in rows if row.step > rows[-1].step * (1 - _LAST)]
        found = statistics.fmean(last)
    else:
        sets = metrics.by_set(list(rows))
        if name not in sets:
            raise UserError(
                f"{folder} has no validation set {name}",
                valid=", ".join([TRAINING, *sorted(sets)]),
            )
        step, result = sets[name][-1]
        if step != rows[-1].step:
            raise UserError(
                f"{folder} was last validated at step {step:,} of {rows[-1].step:,}",
                valid="runs that are validated at their end",
            )
        found = result.loss
    if not math.isfinite(found):
        raise UserError(f"{folder} ends with a loss that is not finite")
    return found
