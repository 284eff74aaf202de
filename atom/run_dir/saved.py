"""Find a checkpoint of a run by its step, and check its files."""

from __future__ import annotations

from pathlib import Path

from atom.errors import UserError
from atom.recipe.run import Run
from atom.run_dir import checkpoint


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
