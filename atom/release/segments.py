"""Divide a release into segments: the steps between two released checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from atom.errors import UserError
from atom.recipe.run import read
from atom.release.bundle import Bundle, Saved, Stage
from atom.run_dir import branch
from atom.run_dir.folder import RUN_FILE


@dataclass(frozen=True)
class Segment:
    """Steps of a stage that can be trained again, or why they cannot.

    Attributes:
        number: its number in the release, from 1.
        stage: its stage.
        begin: the checkpoint it begins from; None for the beginning of the run.
        branched: whether another run has saved that checkpoint.
        end: the checkpoint at its end.
        problem: why it cannot be trained again; None if it can.
    """

    number: int
    stage: Stage
    begin: Saved | None
    branched: bool
    end: Saved
    problem: str | None

    @property
    def first(self) -> int:
        """The step that it begins after."""
        return self.begin.step if self.begin is not None else 0

    def __str__(self) -> str:
        return f"segment {self.number} ({self.stage.name}, steps {self.first + 1}-{self.end.step})"


def of(released: Bundle) -> list[Segment]:
    """Return the segments of a release, in order."""
    found: list[Segment] = []
    for stage in released.stages:
        run = read(released.run_folder(stage) / RUN_FILE)
        begun = branch.parsed(run.resume.origin)[1] if run.resume.origin else None
        before: Saved | None = None
        for saved in stage.checkpoints:
            if before is None and saved.step == begun:
                before = saved
                continue
            segment = Segment(
                len(found) + 1,
                stage,
                before,
                before is not None and before.step == begun,
                saved,
                _problem(before, saved, begun),
            )
            found.append(segment)
            before = saved
    return found


def _problem(before: Saved | None, saved: Saved, begun: int | None) -> str | None:
    first = before.step if before is not None else 0
    if before is None and begun is not None:
        return f"the checkpoint of step {begun} that the run begins from is not in the release"
    if before is not None and not before.whole:
        return f"the checkpoint of step {first} has no optimizer state"
    if saved.resumed > first:
        return f"start {saved.start} resumed from step {saved.resumed}, which is not in the release"
    return None


def chosen(segments: list[Segment], wanted: str) -> list[Segment]:
    """Return the segments that the user asks for.

    Args:
        segments: all.
        wanted: ``all``, a number, or numbers ``A-B``.

    Raises:
        UserError: there are none.
    """
    valid = f"all, or of 1-{len(segments)}" if segments else "none: it has no segment"
    match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", wanted)
    if wanted != "all" and match is None:
        raise UserError("is no segment", valid=valid, key="--segments", value=wanted)
    if match is None:
        found = segments
    else:
        first, last = int(match[1]), int(match[2] or match[1])
        found = [each for each in segments if first <= each.number <= last]
    if not found:
        raise UserError("is no segment of it", valid=valid, key="--segments", value=wanted)
    return found
