"""Refuse a run that cannot resume from a checkpoint, or that would not be what it was."""

from __future__ import annotations

from pathlib import Path

from atom.errors import UserError, shown
from atom.plugin import Optimizer
from atom.recipe.run import Run
from atom.registry.opening import Chosen
from atom.run_dir.branch import Origin
from atom.run_dir.changes import Change

EXCLUDED = "checkpoint.exclude_from_loading"
SEQUENCES = "training.global_batch_size"
_OPTIMIZER = "optimizer"


def content(name: str, words: str, folder: Path, step: int, run: Run) -> None:
    """Refuse a component with other content, which ``words`` describe."""
    raise UserError(
        f"has other content than when the checkpoint of step {step} in {folder} was saved "
        f"({words})",
        valid="that content, another run.dir, or resume.force=true",
        key=name,
        value=getattr(run, name).name,
    )


def loaded(folder: Path, run: Run) -> None:
    """Refuse to start anew without notice when checkpoints exist."""
    if not run.checkpoint.enable:
        raise UserError(
            f"{folder} holds checkpoints of a run, which would not be loaded",
            valid="true, or another run.dir",
            key="checkpoint.enable",
            value=False,
        )


def _has_same_state(optimizer: Chosen[Optimizer] | None, name: str) -> bool:
    """Return whether an optimizer can load the state of the one of another name."""
    if optimizer is None:
        return True
    other = optimizer.opener.declaration(Optimizer, name)
    return other is not None and set(other.state) == set(optimizer.declaration.state)


def change(change: Change, start: Origin, run: Run, optimizer: Chosen[Optimizer] | None) -> None:
    """Refuse a changed setting, unless it is harmless or forced."""
    folder = start.folder
    if change.key == "optimizer.name" and not _has_same_state(optimizer, str(change.before)):
        if _OPTIMIZER in run.checkpoint.engine.get("exclude_from_loading", ()):
            return
        raise UserError(
            f"{folder} holds checkpoints with the state of {change.before}, which {change.after} "
            "cannot load",
            valid=f"{change.before}, or {EXCLUDED}=[{_OPTIMIZER}] to begin without that state",
            key=change.key,
            value=change.after,
        )
    # Each sequence has a position in the data, which no other can continue from.
    forced = run.resume.force and change.key != SEQUENCES
    if forced or change.kind not in ("refused", "unused"):
        return
    if change.kind == "unused":
        raise UserError(
            f"{folder} holds checkpoints of the run itself, so no initial weights are loaded",
            valid=f"{shown(change.before)}, another run.dir, or resume.force=true",
            key=change.key,
            value=change.after,
        )
    raise UserError(
        f"{folder} holds checkpoints of a run with {change.key}={shown(change.before)}",
        valid=f"that value, or resume.from={folder} in another run.dir"
        if change.key == SEQUENCES
        else f"that value, {'' if start.branch else 'another run.dir, '}or resume.force=true",
        key=change.key,
        value=change.after,
    )
