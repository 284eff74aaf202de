"""Find a checkpoint of a run by its step, and check its files."""

from __future__ import annotations

from pathlib import Path

from atom.errors import UserError
from atom.io import strangers
from atom.io.files import is_regular
from atom.recipe.run import Run, read
from atom.run_dir import checkpoint, history
from atom.run_dir.folder import RUN_FILE

_EXPORTED = "config.json"
"""A file that each export has."""


def folder(run: Run) -> str:
    """Return the name of the folder of checkpoints in a run folder."""
    return str(run.checkpoint.engine.get("folder", checkpoint.FOLDER))


def newest(place: Path, run: Run, step: int | None = None) -> tuple[int, Path]:
    """Return a step and its checkpoint's folder: that of ``step``, or the newest.

    Args:
        place: the run folder.
        run: its ``run.yaml``.
        step: the step; None for the newest.

    Raises:
        UserError: the run has no such checkpoint, or files are missing.
    """
    below = place / folder(run)
    steps = checkpoint.steps(below)
    if not steps:
        raise UserError(f"{place} holds no checkpoint")
    if step is not None and step not in steps:
        raise UserError(f"{place} holds no checkpoint of step {step}", valid=f"{_listed(steps)}")
    chosen = steps[-1] if step is None else step
    found = checkpoint.step_folder(below, chosen)
    others = [other for other in steps if other != chosen]
    valid = f"; others: {_listed(others)}" if others else ""
    if checkpoint.is_exported(found):
        raise UserError(f"the checkpoint {found} is in Hugging Face's format{valid}")
    try:
        problem = checkpoint.missing(found, checkpoint.read_manifest(found))
    except ValueError as error:
        problem = str(error)
    if problem is not None:
        raise UserError(f"the checkpoint {found} is damaged: {problem}{valid}")
    return chosen, found


def check(place: Path, run: Run | None, *, step: int | None, average: str | None) -> None:
    """Refuse weights that are not there, without torch.

    Args:
        place: the folder of a run or of an export, or one in Hugging Face's format.
        run: its ``run.yaml``; None without one.
        step: the wanted step; None for the newest.
        average: the wanted average; None for the weights.

    Raises:
        UserError: there is no such checkpoint, or the folder is no run's.
    """
    if run is not None and not is_regular(place / _EXPORTED):
        newest(place, run, step)
        if average is not None:
            _check_average(place, average)
        return
    for option, value in (("step", step), ("average", average)):
        if value is not None:
            raise UserError(f"--{option} {value} is for the folder of a run; {place} is an export")


def check_folder(place: Path, *, step: int | None, average: str | None) -> None:
    """Refuse a folder that is no run's or export's, or has no such weights, without torch.

    Raises:
        UserError: names what is missing.
    """
    if not place.is_dir():
        raise UserError(f"{place}: there is no such folder", valid="one of a run")
    strangers.check(place)
    if is_regular(place / RUN_FILE):
        check(place, read(place / RUN_FILE), step=step, average=average)


def _check_average(place: Path, average: str) -> None:
    """Refuse the name of a callback that no start of a run has had."""
    starts = history.periods(place, RUN_FILE)
    files = [place / RUN_FILE, *(start.file for start in starts)]
    names = {name for file in files for name in read(file, below=place).callback_names}
    if average not in names:
        raise UserError(
            f"{place} has no averaged weights of a callback {average}",
            valid=", ".join(sorted(names)) or "no --average: it has the weights alone",
        )


def verify(place: Path) -> None:
    """Refuse a checkpoint with a file that was changed after it was saved.

    Raises:
        UserError: with the name of the file.
    """
    manifest = checkpoint.read_manifest(place)
    if problem := checkpoint.altered(place, manifest, manifest.files):
        raise UserError(f"the checkpoint {place} is damaged: {problem}")


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps[-8:]))
