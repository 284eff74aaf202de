"""Begin a run from a checkpoint of another run: ``resume.from=RUN@STEP``.

The new run folder gets the checkpoint: links to its files, or copies of them. The run then resumes
from it as from one of its own, and the other run may delete its checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atom.data import position
from atom.errors import RunError, UserError
from atom.io import files
from atom.recipe.run import Run, read
from atom.run_dir import checkpoint, events
from atom.run_dir.folder import RUN_FILE

KEY = "resume.from"

_HASHED = 1 << 30
"""Bytes of a checkpoint with digests that are checked before ranks start."""

DATA = (
    "dataset",
    "data.order",
    "data.packing",
    "debug.seed",
    "training.seq_len",
    "training.global_batch_size",
    "validation.fraction",
)
"""Settings that the position in the data depends on, and nothing else in a checkpoint."""


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a run resumes from.

    Attributes:
        folder: the run folder that holds it.
        step: its step.
        branch: whether another run has saved it.
    """

    folder: Path
    step: int
    branch: bool = False

    @property
    def place(self) -> Path:
        """The folder of the checkpoint."""
        return checkpoint.step_folder(self.folder / checkpoint.FOLDER, self.step)

    def beside(self, name: str) -> Path:
        """Return the path of a file of the start that saved the checkpoint.

        The file in the run folder can belong to a start that ended before its first step.
        """
        beside = self.place / name
        return beside if beside.is_file() or name != RUN_FILE else self.folder / name


def origin(folder: Path, run: Run) -> Origin | None:
    """Return the checkpoint that ``run`` resumes from in ``folder``; None if it starts anew."""
    steps = checkpoint.resumable(folder / checkpoint.FOLDER)
    wanted = run.resume.origin
    if wanted is None:
        return Origin(folder, steps[0]) if steps else None
    other, step = parsed(wanted)
    assert step is not None  # see with_origin()
    if not steps:
        return Origin(Path(other), step, branch=True)
    newest = Origin(folder, steps[0])
    saved_by_other = read(newest.beside(RUN_FILE)).resume.origin != wanted
    return Origin(folder, steps[0], branch=saved_by_other and _recorded(folder) == wanted)


def with_origin(folder: Path, run: Run) -> Run:
    """Return ``run`` with the full path and the step of ``resume.from``.

    Raises:
        UserError: there is no such checkpoint.
    """
    wanted = run.resume.origin
    if wanted is None:
        return run
    # Checkpoints of adapters lack their base.
    if run.checkpoint.initial_load and not run.lora.rank:
        raise UserError(
            "begins with the weights of a checkpoint, too",
            valid="one of the two",
            key="checkpoint.initial_load",
            value=run.checkpoint.initial_load,
        )
    name, step = parsed(wanted)
    other = Path(name).expanduser().resolve()
    if other == folder.resolve():
        raise UserError("is the run itself", valid="another run.dir", key=KEY, value=wanted)
    full = _recorded(folder)
    begun, begun_at = parsed(full or "")
    if begun != str(other) or step not in (None, begun_at):
        full = f"{other}@{_existing(other, step, wanted)}"
    resume = run.resume.model_copy(update={"from": full})
    return run.model_copy(update={"resume": resume})


def adopt(start: Origin, folder: Path, *, settings: Mapping[str, Any], data: Sequence[str]) -> None:
    """Give a run folder the checkpoint of another run, and record that.

    Args:
        start: the checkpoint.
        folder: the run folder.
        settings: the settings that differ: key -> before, after.
        data: why the data begins anew.
    """
    if start.folder == folder:
        return  # an earlier start has
    place = folder / checkpoint.FOLDER
    partial = checkpoint.partial_folder(place, start.step)
    shutil.rmtree(partial, ignore_errors=True)
    files.make_folder(partial)
    try:
        for file in start.place.iterdir():
            _link(file, partial / file.name)
    except FileNotFoundError:
        pass
    if checkpoint.broken(partial) is not None:
        raise RunError(f"{start.place} was deleted before the new run could link to its files")
    left_out = position.left_out(events.read(start.folder)) if not data else ()
    # First, as nothing is adopted again once the checkpoint has its name.
    events.record(
        folder,
        events.BRANCHED,
        step=start.step,
        origin=str(start.folder),
        settings=dict(settings),
        data=list(data),
        gone_back=[[back, count] for back, count in left_out if back < start.step],
    )
    partial.rename(checkpoint.step_folder(place, start.step))


def _link(file: Path, target: Path) -> None:
    try:
        if file.stat().st_uid == os.getuid() and files.is_regular(file):
            os.link(file, target)
            return
    except OSError:
        pass  # another disk, or one without links
    files.copy(file, target)


def _existing(other: Path, step: int | None, wanted: str) -> int:
    """Return ``step``, or the newest, of the checkpoints in a run folder.

    The ranks check the rest of a large one.
    """
    place = other / checkpoint.FOLDER
    steps = checkpoint.resumable(place)
    if steps and step in (None, *steps):
        chosen = checkpoint.step_folder(place, steps[0] if step is None else step)
        if reason := checkpoint.broken(chosen, _HASHED):
            raise UserError(
                f"the checkpoint {chosen} is damaged: {reason}", valid="@STEP of another one",
                key=KEY, value=wanted,
            )  # fmt: skip
        return steps[0] if step is None else step
    if steps:
        listed = ", ".join(str(each) for each in sorted(steps)[-8:])
        raise UserError(
            f"has no whole checkpoint of step {step}", valid=f"@STEP, of {listed}", key=KEY,
            value=wanted,
        )  # fmt: skip
    raise UserError(
        f"{other} holds no checkpoint to resume from",
        valid="RUN@STEP, with the folder of a run",
        key=KEY,
        value=wanted,
    )


def _recorded(folder: Path) -> str | None:
    """Return ``resume.from`` of the start before."""
    file = folder / RUN_FILE
    return read(file).resume.origin if file.is_file() else None


def parsed(wanted: str) -> tuple[str, int | None]:
    """Return the folder and the step of ``RUN@STEP``, or of ``RUN``."""
    match = re.fullmatch(r"(.+)@([0-9]{1,15})", wanted)
    return (match[1], int(match[2])) if match else (wanted, None)
